package main

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/tidemark-sync/tidemark/integration/servers"
)

// insideOwnMounts marks a test process whose mounts nobody else sees.
const insideOwnMounts = "TIDEMARK_TEST_OWN_MOUNTS"

// TestDisk runs the scripts that need a disk of their own, a small one or one that is
// read-only, in a process that may mount without the machine noticing.
func TestDisk(t *testing.T) {
	t.Parallel()
	if os.Getenv(insideOwnMounts) == "" {
		again := func(args ...string) *exec.Cmd {
			cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
			cmd.Env = append(os.Environ(), insideOwnMounts+"=1")
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
			if os.Getuid() != 0 {
				cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
				cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
				cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
			}
			return cmd
		}
		if out, err := again("-test.run=^TestMayMount$", "-test.v").CombinedOutput(); err != nil {
			t.Skipf("NOT RUN, this system does not let us mount a disk of our own: %v %s", err, out)
		}
		out, err := again("-test.run=^TestDisk$", "-test.v").CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		t.Logf("%s", out)
		return
	}
	private(t)
	onDisks(t, "testdata/disk", environment)
	t.Run("S3", func(t *testing.T) {
		onDisks(t, "testdata/disks3", bucketEnvironment(servers.S3(t)))
	})
}

func onDisks(t *testing.T, dir string, setup func(*testscript.Env) error) {
	t.Helper()
	testscript.Run(t, testscript.Params{
		Dir: dir, RequireExplicitExec: true, Setup: setup,
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			// disk FOLDER KILOBYTES puts a new, empty disk on a folder.
			"disk": func(ts *testscript.TestScript, _ bool, args []string) {
				kilobytes, err := strconv.Atoi(args[1])
				ts.Check(err)
				dir := ts.MkAbs(args[0])
				ts.Check(syscall.Mount("none", dir, "tmpfs", 0, fmt.Sprintf("size=%dk", kilobytes)))
				ts.Defer(func() { ts.Check(syscall.Unmount(dir, syscall.MNT_DETACH)) })
			},
			// readonly FOLDER and writable FOLDER change what is on the folder.
			"readonly": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Check(syscall.Mount("none", ts.MkAbs(args[0]), "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""))
			},
			"writable": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Check(syscall.Mount("none", ts.MkAbs(args[0]), "", syscall.MS_REMOUNT, ""))
			},
			// fill FILE writes until its disk is full, but for so many kilobytes.
			"fill": func(ts *testscript.TestScript, _ bool, args []string) {
				leave, err := strconv.Atoi(args[1])
				ts.Check(err)
				f, err := os.Create(ts.MkAbs(args[0]))
				ts.Check(err)
				size, block := int64(0), make([]byte, 4096)
				for err == nil {
					var n int
					n, err = f.Write(block)
					size += int64(n)
				}
				if !strings.Contains(err.Error(), "no space left") {
					ts.Fatalf("the disk is not full: %v", err)
				}
				ts.Check(f.Truncate(size - int64(leave)<<10))
				ts.Check(f.Close())
			},
		},
	})
}

// TestMayMount fails where a process may not have mounts of its own.
func TestMayMount(t *testing.T) {
	if os.Getenv(insideOwnMounts) == "" {
		return // TestDisk asks
	}
	private(t)
	dir := t.TempDir()
	if err := syscall.Mount("none", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
}

// private keeps our mounts from being seen outside.
func private(t *testing.T) {
	t.Helper()
	if err := syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
}
