package tidemark_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/adapters/memory"
)

// A progress bar: the observer hears how far a cycle is.
func ExampleWithObserver() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "tidemark-example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	db := open(filepath.Join(dir, "notes.db"))
	defer db.Close()
	if _, err := tidemark.Attach(ctx, db); err != nil {
		log.Fatal(err)
	}
	p, err := tidemark.New(ctx, db, memory.NewRemote(), memory.NewStore(), tidemark.WithObserver(func(e tidemark.Event) {
		switch e := e.(type) {
		case tidemark.Progress:
			if e.Total > 0 {
				fmt.Printf("%s: %d of %d %s\n", e.Stage, e.Done, e.Total, e.Unit)
			}
		case tidemark.StageFailed:
			fmt.Printf("%s failed (%s)\n", e.Stage, e.Class)
		case tidemark.CycleDone:
			fmt.Printf("done, billed %d reads and %d writes\n", e.Counts.Billed.Reads, e.Counts.Billed.Writes)
		}
	}))
	if err != nil {
		log.Fatal(err)
	}
	if _, err := db.NewInsert().Model(&[]Note{{Title: "milk"}, {Title: "bread"}}).Exec(ctx); err != nil {
		log.Fatal(err)
	}
	if _, err := p.Sync(ctx); err != nil {
		log.Fatal(err)
	}
	// Output:
	// upload: 2 of 2 rows uploaded
	// done, billed 1 reads and 3 writes
}
