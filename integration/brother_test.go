package integration

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	tidemark "github.com/tidemark-sync/tidemark"
)

// day lets n devices write a row and sync every minute, and tells which of them
// uploaded how many snapshots, and the GETs of all of them.
func day(t *testing.T, f *fleet, devices []*device, minutes int) (made map[*device]int, gets int64) {
	t.Helper()
	made = map[*device]int{}
	for range minutes {
		for _, d := range devices {
			d.exec(`INSERT INTO note (title) VALUES ('a line that somebody wrote')`)
			r := d.sync()
			gets += r.Store.Gets
			if r.Snapshot != nil {
				made[d]++
			}
			<-time.After(time.Minute / time.Duration(len(devices)))
		}
	}
	return made, gets
}

func TestFiveDevicesOverADayHaveOneBigBrother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, oneTable)
		var devices []*device
		for i := range 5 {
			d := f.device(fmt.Sprint("d", i), tidemark.WithBackup(1000, 24*time.Hour, 3))
			devices = append(devices, d)
			defer func() { _ = d.db.Close() }()
			d.sync()
		}
		start := time.Now()
		made, gets := day(t, f, devices, 60)
		t.Log(made, gets, time.Since(start))
	})
}
