package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
)

func init() { signalNames["HUP"] = syscall.SIGHUP }

func playingCommand(args []string) error {
	raw, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	plays := strings.Split(strings.TrimSpace(string(raw)), "\n")
	cmd := child(args[1:])
	cmd.Stdout = nil
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	cmd.Stderr = cmd.Stdout // what it says, in its order
	if err := cmd.Start(); err != nil {
		return err
	}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		fmt.Println(lines.Text())
		if len(plays) == 0 {
			continue
		}
		play := strings.Split(plays[0], "|")
		for i := range play {
			play[i] = strings.TrimSpace(play[i])
		}
		if !strings.Contains(lines.Text(), play[0]) {
			continue
		}
		plays = plays[1:]
		if len(play) == 4 {
			raw, err := os.ReadFile(play[2])
			if err == nil {
				err = os.WriteFile(play[3], raw, 0o600)
			}
			if err != nil {
				return err
			}
		}
		if err := cmd.Process.Signal(signalNames[play[1]]); err != nil {
			return err
		}
	}
	err = cmd.Wait()
	if err == nil && len(plays) > 0 {
		err = errors.New("the command ended without saying " + plays[0])
	}
	return err
}
