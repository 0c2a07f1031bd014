package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"

	"github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/adapters/file"
	"github.com/tidemark-sync/tidemark/adapters/firestore"
	"github.com/tidemark-sync/tidemark/adapters/s3"
)

// address is a parsed --remote or --store.
type address struct {
	scheme    string
	authority string // a project or a bucket
	path      string // a scope, a prefix or a folder; unescaped
	query     url.Values
}

const (
	remoteForms = "it takes firestore://PROJECT/users/alice or file:///DIR"
	storeForms  = "it takes s3://BUCKET/PREFIX or file:///DIR"
)

// parseRemote checks everything about a remote's URL that needs no server.
func parseRemote(s setting) (address, error) {
	u, err := parseAddress(s, remoteForms, "firestore", "file")
	if err != nil || u.scheme == "file" {
		return u, err
	}
	switch {
	case u.authority == "":
		return u, s.wrong("it names no project", remoteForms)
	case u.path == "":
		return u, s.wrong("it names no scope, below which the collections live", remoteForms)
	case strings.Count(u.path, "/")%2 == 0:
		return u, s.wrong("its scope is a collection and has to be a document: an even number of names, such as users/alice", "")
	}
	return u, u.knows(s, "database")
}

// parseStore checks everything about a store's URL that needs no server.
func parseStore(s setting) (address, error) {
	u, err := parseAddress(s, storeForms, "s3", "file")
	if err != nil || u.scheme == "file" {
		return u, err
	}
	if u.authority == "" {
		return u, s.wrong("it names no bucket", storeForms)
	}
	if e := u.query.Get("endpoint"); e != "" {
		p, err := url.Parse(e)
		if err != nil || p.Scheme != "http" && p.Scheme != "https" || p.Host == "" || p.User != nil || p.RawQuery != "" || p.Fragment != "" {
			return u, s.wrong("its endpoint has to look like https://HOST[:PORT]", "")
		}
	}
	if c := u.query["conditions"]; len(c) > 0 && !slices.Equal(c, []string{"ignored"}) {
		return u, s.wrong(`its parameter "conditions" can only say "ignored": that the server ignores the conditions of writes, and that this is accepted`, "")
	}
	return u, u.knows(s, "region", "endpoint", "conditions")
}

// wrong says what is wrong with a URL, and never repeats it: it may hold a secret.
func (s setting) wrong(what, forms string) error {
	if forms != "" {
		what += "; " + forms
	}
	return misuse("%s is no URL that works: %s", s.from, what)
}

// secret are the parameters that people put credentials into.
var secret = regexp.MustCompile(`(?i)key|secret|token|pass|pwd|cred|auth|sig`)

var parameterName = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,40}$`)

func (u address) knows(s setting, names ...string) error {
	for name, values := range u.query {
		switch {
		case !slices.Contains(names, name) && secret.MatchString(name):
			return s.wrong("it has a parameter that looks like a secret; take it out: credentials come from where gcloud and aws keep them", "")
		case !slices.Contains(names, name) && strings.Trim(values[0], "=") != "" && parameterName.MatchString(name): // without a value it may be a secret itself
			return s.wrong(fmt.Sprintf("there is no parameter %q here; there is %s", name, strings.Join(names, " and ")), "")
		case !slices.Contains(names, name):
			return s.wrong("it has a parameter that is none of "+strings.Join(names, ", "), "")
		case len(values) != 1 || values[0] == "":
			return s.wrong(fmt.Sprintf("the parameter %q needs one value", name), "")
		}
	}
	return nil
}

// parseAddress takes a URL apart itself: a project like example.com:notes is no host.
func parseAddress(s setting, forms string, schemes ...string) (address, error) {
	scheme, rest, ok := strings.Cut(s.text, "://")
	switch {
	case !ok:
		return address{}, s.wrong("it has no scheme", forms)
	case !slices.Contains(schemes, scheme) && slices.Contains([]string{"firestore", "s3", "http", "https", "gs"}, scheme):
		return address{}, s.wrong(scheme+":// does not go here", forms)
	case !slices.Contains(schemes, scheme):
		return address{}, s.wrong("its scheme is unknown", forms)
	case strings.Contains(rest, "#"):
		return address{}, s.wrong("it has a #; write %23 for one in a name", "")
	}
	rest, query, _ := strings.Cut(rest, "?")
	authority, path, _ := strings.Cut(rest, "/")
	if strings.Contains(authority, "@") {
		return address{}, s.wrong("it has a user or a password in it; take them out: credentials come from where gcloud and aws keep them", "")
	}
	u := address{scheme: scheme, authority: authority}
	var err error
	if u.query, err = url.ParseQuery(query); err != nil {
		return u, s.wrong("what follows the ? is not a list of NAME=VALUE", "")
	}
	if u.path, err = url.PathUnescape(path); err != nil {
		return u, s.wrong("it has a % that is no escape; write %25 for one in a name", "")
	}
	if strings.ContainsRune(u.path, 0) {
		return u, s.wrong("it holds a NUL character", "")
	}
	if scheme != "file" {
		u.path = strings.TrimSuffix(u.path, "/")
		return u, nil
	}
	if query != "" {
		return u, s.wrong("a folder takes no parameters; write %3F for a ? in a name", "")
	}
	if authority != "" && authority != "localhost" || path == "" {
		return u, s.wrong("a folder is written with three slashes and its whole path, file:///home/alice/remote", "")
	}
	if runtime.GOOS != "windows" {
		u.path = "/" + u.path
	}
	u.path = filepath.Clean(filepath.FromSlash(u.path))
	return u, nil
}

// openRemote finds the credentials and connects; most of it happens at first use.
func openRemote(ctx context.Context, u address) (tidemark.Remote, io.Closer, error) {
	if u.scheme == "file" {
		r, err := file.OpenRemote(u.path) //nolint:contextcheck // it waits for a lock with a limit of its own
		if err != nil {
			return nil, nil, opening(err)
		}
		return r, r, nil
	}
	if strings.Contains(u.path, firestore.UserID) {
		return nil, nil, misuse("the remote's scope has %s in it: write the user's id there; firestore-config alone takes it as it is", firestore.UserID)
	}
	user, err := signedIn()
	if err != nil {
		return nil, nil, opening(err)
	}
	r, err := firestore.Open(ctx, firestore.Config{Project: u.authority, Database: u.query.Get("database"), Scope: u.path, User: user})
	if err != nil {
		return nil, nil, opening(err)
	}
	return r, r, nil
}

// openStore finds the credentials; nothing is sent yet.
func openStore(ctx context.Context, u address) (tidemark.SnapshotStore, io.Closer, error) {
	if u.scheme == "file" {
		s, err := file.OpenStore(u.path) //nolint:contextcheck // as above
		if err != nil {
			return nil, nil, opening(err)
		}
		return s, s, nil
	}
	s, err := s3.Open(ctx, s3.Config{Bucket: u.authority, Prefix: u.path, Region: u.query.Get("region"), Endpoint: u.query.Get("endpoint")})
	if err != nil {
		return nil, nil, opening(err)
	}
	return s, io.NopCloser(nil), nil
}

// openStoreThatIs is openStore for what only reads: it makes no folder.
func openStoreThatIs(ctx context.Context, u address) (tidemark.SnapshotStore, io.Closer, error) {
	if u.scheme == "file" {
		if err := file.StoreExists(u.path); err != nil {
			return nil, nil, err
		}
	}
	return openStore(ctx, u)
}

// opening tells a URL that no server would take from one that did not work.
func opening(err error) error {
	if errors.Is(err, tidemark.ErrRejected) {
		return usageError{err}
	}
	return err
}
