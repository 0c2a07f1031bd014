package servers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync"
	"time"
)

// startTimeout is generous: a busy machine starts a JVM in many times the usual
// two seconds.
const startTimeout = 60 * time.Second

// process is a server that runs until Stop.
type process struct {
	addr string // host:port
	cmd  *exec.Cmd
	out  tail
	done chan struct{} // closed when the process has ended
	dirs []string      // removed when it is stopped
}

var running struct {
	sync.Mutex
	processes []*process
}

// Stop ends every server of this process, by its process id, and waits for it.
// Main calls it; only a TestMain that does not use Main needs to.
func Stop() {
	running.Lock()
	defer running.Unlock()
	for _, p := range running.processes {
		p.kill()
	}
	running.processes = nil
	firestore.reset()
	s3.reset()
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill() // an error means that it has ended already
	<-p.done
	for _, d := range p.dirs {
		_ = os.RemoveAll(d)
	}
}

// start runs a server on a free port of 127.0.0.1 and waits until ready answers
// an HTTP GET. The port is found by asking for one and closing it again, so
// somebody else may take it in between: then the server ends, and another port
// is tried.
func start(name, ready string, command func(port int) *exec.Cmd, dirs ...string) (*process, error) {
	var err error
	for range 3 {
		var p *process
		if p, err = startOnce(name, ready, command); err == nil {
			p.dirs = dirs
			running.Lock()
			running.processes = append(running.processes, p)
			running.Unlock()
			return p, nil
		}
	}
	return nil, err
}

func startOnce(name, ready string, command func(port int) *exec.Cmd) (*process, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	p := &process{addr: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), cmd: command(port), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.out
	dieWithParent(p.cmd)
	started := make(chan error, 1)
	go func() {
		// The system ends the child when the *thread* that started it ends.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			_ = p.cmd.Wait() // how it ended shows in out
		}
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	if err := p.await("http://" + p.addr + ready); err != nil {
		p.kill()
		return nil, fmt.Errorf("start %s: %w; it said:\n%s", name, err, p.out.String())
	}
	return p, nil
}

func (p *process) await(url string) error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("no answer within %v", startTimeout)
		case <-p.done:
			return errors.New("it ended at once")
		case <-tick.C:
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			continue
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			return nil
		}
	}
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// tail keeps the last of what a server printed, for the message when it fails.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

const tailBytes = 16 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if n := len(t.buf) - tailBytes; n > 0 {
		t.buf = append(t.buf[:0], t.buf[n:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf)
}

// shared is a server that the first caller starts and the others use.
type shared struct {
	mu  sync.Mutex
	p   *process
	err error
}

func (s *shared) get(start func() (*process, error)) (*process, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.p == nil && s.err == nil {
		s.p, s.err = start()
	}
	return s.p, s.err
}

func (s *shared) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.p, s.err = nil, nil
}
