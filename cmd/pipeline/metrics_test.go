package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
)

var metricsAt = regexp.MustCompile(`http://\S+/metrics`)

// scrapedCommand runs a command until it has said where its metrics are and a text,
// prints what is there, and interrupts it.
func scrapedCommand(args []string) error {
	cmd := child(args[1:])
	cmd.Stdout = nil
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	url, said := "", false
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if u := metricsAt.FindString(lines.Text()); u != "" {
			url = u
		}
		if said || url == "" || !strings.Contains(lines.Text(), args[0]) {
			continue
		}
		said = true
		err = errors.Join(printPage(url), cmd.Process.Signal(os.Interrupt))
	}
	if err = errors.Join(err, cmd.Wait()); err == nil && !said {
		err = errors.New("the command ended without saying where its metrics are, and " + args[0])
	}
	return err
}

func printPage(url string) error {
	resp, err := http.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	_, err = io.Copy(os.Stdout, resp.Body)
	return err
}

var (
	inRule  = regexp.MustCompile(`(tidemark_[a-z_]+)(?:\{([^}]*)\})?`)
	matcher = regexp.MustCompile(`([a-z_]+)\s*[=!]`)
)

// measuredCommand demands that Prometheus' parser takes a page of metrics, and that
// each metric of ours that a rule or a dashboard names is there, with its labels.
func measuredCommand(args []string) error {
	page, err := os.Open(args[0])
	if err != nil {
		return err
	}
	defer page.Close()
	var parser expfmt.TextParser
	families, err := parser.TextToMetricFamilies(page)
	if err != nil {
		return fmt.Errorf("%s: %w", args[0], err)
	}
	unused := maps.Clone(families)
	for _, name := range args[1:] {
		raw, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		found := inRule.FindAllStringSubmatch(strings.ReplaceAll(string(raw), `\"`, `"`), -1)
		if len(found) == 0 {
			return fmt.Errorf("%s names no metric", name)
		}
		for _, f := range found {
			family := families[f[1]]
			for _, suffix := range []string{"_bucket", "_sum", "_count"} {
				if h := families[strings.TrimSuffix(f[1], suffix)]; family == nil && h.GetType() == dto.MetricType_HISTOGRAM {
					family = h
				}
			}
			if family == nil {
				return fmt.Errorf("%s names %s, which is not there", name, f[1])
			}
			delete(unused, family.GetName())
			for _, label := range matcher.FindAllStringSubmatch(f[2], -1) {
				if label[1] != "instance" && !slices.ContainsFunc(family.GetMetric(), func(m *dto.Metric) bool {
					return slices.ContainsFunc(m.GetLabel(), func(l *dto.LabelPair) bool { return l.GetName() == label[1] })
				}) {
					return fmt.Errorf("%s: %s has no label %s", name, f[1], label[1])
				}
			}
		}
	}
	for name := range unused {
		if strings.HasPrefix(name, "tidemark_") {
			return fmt.Errorf("nobody looks at %s", name)
		}
	}
	return nil
}
