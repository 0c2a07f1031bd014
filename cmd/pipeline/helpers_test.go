package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

var signalNames = map[string]os.Signal{"INT": os.Interrupt, "TERM": syscall.SIGTERM}

func untilCommand(args []string) error {
	sig := signalNames[args[1]]
	if sig == nil {
		return fmt.Errorf("no signal %q", args[1])
	}
	cmd := child(args[2:])
	cmd.Stdout = nil
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	found := false
	for lines := bufio.NewScanner(out); lines.Scan(); {
		fmt.Println(lines.Text())
		if !found && strings.Contains(lines.Text(), args[0]) {
			found = true
			if err := cmd.Process.Signal(sig); err != nil {
				return err
			}
		}
	}
	err = cmd.Wait()
	if err == nil && !found {
		err = errors.New("the command ended without saying " + args[0])
	}
	return err
}

// firestoreOf runs a command against a server that handles every call with answer.
// Calls wait until the command has its process.
func firestoreOf(cmd *exec.Cmd, answer grpc.StreamHandler) error {
	started := make(chan struct{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := grpc.NewServer(grpc.UnknownServiceHandler(func(srv any, s grpc.ServerStream) error {
		<-started
		return answer(srv, s)
	}))
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	cmd.Env = append(cmd.Env, "FIRESTORE_EMULATOR_HOST="+l.Addr().String())
	err = cmd.Start()
	close(started)
	if err == nil {
		err = cmd.Wait()
	}
	server.Stop()
	return errors.Join(err, <-served)
}

func answeringCommand(args []string) error {
	code, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	return firestoreOf(child(args[2:]), func(any, grpc.ServerStream) error {
		return status.Error(codes.Code(code), args[1])
	})
}

func interruptingCommand(args []string) error {
	cmd := child(args[1:])
	var once sync.Once
	return firestoreOf(cmd, func(_ any, s grpc.ServerStream) error {
		once.Do(func() {
			for name := range strings.SplitSeq(args[0], ",") {
				_ = cmd.Process.Signal(signalNames[name]) // when it has ended, the exit code tells
			}
		})
		<-s.Context().Done()
		return s.Context().Err()
	})
}

func cuttingCommand(args []string) error {
	budget, err := strconv.ParseInt(args[1], 10, 64)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	line := &line{to: args[0], listener: l, budget: budget}
	var wg sync.WaitGroup
	wg.Go(func() { line.serve(&wg) })
	command := args[2:]
	for i := range command {
		command[i] = strings.ReplaceAll(command[i], "LINE", l.Addr().String())
	}
	env := []string{}
	if os.Getenv("FIRESTORE_EMULATOR_HOST") == args[0] {
		env = append(env, "FIRESTORE_EMULATOR_HOST="+l.Addr().String())
	}
	err = child(command, env...).Run()
	if !line.cut() {
		err = errors.Join(err, errors.New("the command ended before the line broke: give it fewer bytes"))
	}
	wg.Wait()
	return err
}

// line is a line to a server. When the budget of bytes towards the server is spent,
// all its connections break and no new one is made.
type line struct {
	to       string
	listener net.Listener
	mu       sync.Mutex
	budget   int64
	open     []net.Conn
	broken   bool
}

func (l *line) serve(wg *sync.WaitGroup) {
	for {
		from, err := l.listener.Accept()
		if err != nil {
			return
		}
		to, err := net.Dial("tcp", l.to)
		if err != nil {
			_ = from.Close()
			continue
		}
		l.mu.Lock()
		l.open = append(l.open, from, to)
		l.mu.Unlock()
		wg.Go(func() {
			_, _ = io.Copy(to, l.metered(from))
			_ = to.Close()
		})
		wg.Go(func() {
			_, _ = io.Copy(from, to)
			_ = from.Close()
		})
	}
}

type readFunc func([]byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }

func (l *line) metered(r io.Reader) io.Reader {
	return readFunc(func(p []byte) (int, error) {
		n, err := r.Read(p)
		l.mu.Lock()
		l.budget -= int64(n)
		spent := l.budget <= 0
		l.mu.Unlock()
		if spent {
			l.cut()
			return 0, io.ErrClosedPipe
		}
		return n, err
	})
}

// cut breaks the line, and reports whether it was broken before.
func (l *line) cut() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	was := l.broken
	l.broken = true
	_ = l.listener.Close()
	for _, c := range l.open {
		_ = c.Close()
	}
	return was
}
