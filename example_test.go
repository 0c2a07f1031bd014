package tidemark_test

import (
	"context"
	"database/sql"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"time"

	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect/sqlitedialect"
	_ "modernc.org/sqlite" // the application picks the driver

	"github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/adapters/memory"
)

// Note is a model of the application; it knows nothing of tidemark.
type Note struct {
	ID    int64 `bun:",pk,autoincrement"`
	Title string
}

// open opens (or makes) an application's database.
func open(path string) *bun.DB {
	raw, err := sql.Open("sqlite", "file:"+path+"?_pragma=busy_timeout(10000)")
	if err != nil {
		log.Fatal(err)
	}
	db := bun.NewDB(raw, sqlitedialect.New())
	if _, err := db.NewCreateTable().Model((*Note)(nil)).IfNotExists().Exec(context.Background()); err != nil {
		log.Fatal(err)
	}
	return db
}

// An application with bun models is attached once and synced; a second device gets
// the rows.
func Example() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "tidemark-example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	server, bucket := memory.NewServer(), memory.NewStore() // in production: adapters/firestore and adapters/s3

	phone := open(filepath.Join(dir, "phone.db"))
	defer phone.Close()
	if _, err := tidemark.Attach(ctx, phone); err != nil {
		log.Fatal(err)
	}
	p, err := tidemark.New(ctx, phone, server.Remote(), bucket)
	if err != nil {
		log.Fatal(err)
	}
	if _, err := phone.NewInsert().Model(&[]Note{{Title: "milk"}, {Title: "bread"}}).Exec(ctx); err != nil {
		log.Fatal(err)
	}
	report, err := p.Sync(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("phone uploaded", report.Total().Uploaded, "rows in", report.Billed.Writes, "writes")

	laptop := open(filepath.Join(dir, "laptop.db"))
	defer laptop.Close()
	if _, err := tidemark.Attach(ctx, laptop); err != nil {
		log.Fatal(err)
	}
	q, err := tidemark.New(ctx, laptop, server.Remote(), bucket)
	if err != nil {
		log.Fatal(err)
	}
	if _, err := q.Sync(ctx); err != nil {
		log.Fatal(err)
	}
	var notes []Note
	if err := laptop.NewSelect().Model(&notes).Column("id", "title").Order("title").Scan(ctx); err != nil {
		log.Fatal(err)
	}
	for _, n := range notes {
		fmt.Println("laptop has", n.Title)
	}
	// Output:
	// phone uploaded 2 rows in 3 writes
	// laptop has bread
	// laptop has milk
}

// attached is a pipeline on a fresh database in a folder.
func attached(ctx context.Context, dir string) (*bun.DB, *tidemark.Pipeline) {
	db := open(filepath.Join(dir, "notes.db"))
	if _, err := tidemark.Attach(ctx, db); err != nil {
		log.Fatal(err)
	}
	p, err := tidemark.New(ctx, db, memory.NewRemote(), memory.NewStore(), tidemark.WithDevice("Ada's phone", "notes 1.4"))
	if err != nil {
		log.Fatal(err)
	}
	return db, p
}

// Sync runs one cycle. A cycle that finds nothing to do costs one billed read.
func ExamplePipeline_Sync() {
	ctx := context.Background()
	dir, _ := os.MkdirTemp("", "tidemark-example")
	defer os.RemoveAll(dir)
	db, p := attached(ctx, dir)
	defer db.Close()

	if _, err := db.NewInsert().Model(&Note{Title: "milk"}).Exec(ctx); err != nil {
		log.Fatal(err)
	}
	for range 2 {
		r, err := p.Sync(ctx)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("in step: %v, uploaded: %d, billed: %d reads, %d writes, snapshot: %v\n",
			r.InStep, r.Total().Uploaded, r.Billed.Reads, r.Billed.Writes, r.Snapshot != nil)
	}
	// Output:
	// in step: true, uploaded: 1, billed: 1 reads, 2 writes, snapshot: true
	// in step: true, uploaded: 0, billed: 1 reads, 0 writes, snapshot: false
}

// Run keeps in step in a goroutine of the application's, until its context ends.
func ExamplePipeline_Run() {
	ctx, cancel := context.WithCancel(context.Background())
	dir, _ := os.MkdirTemp("", "tidemark-example")
	defer os.RemoveAll(dir)
	db, p := attached(ctx, dir)
	defer db.Close()

	stopped := make(chan error)
	first := make(chan tidemark.Report, 1)
	go func() {
		stopped <- p.Run(ctx, func(r tidemark.Report, err error) {
			if err == nil {
				select {
				case first <- r:
				default:
				}
			}
		})
	}()
	fmt.Println("in step:", (<-first).InStep)
	cancel()
	fmt.Println("stopped:", <-stopped)
	// Output:
	// in step: true
	// stopped: <nil>
}

// Status says how the database stands, without the network.
func ExamplePipeline_Status() {
	ctx := context.Background()
	dir, _ := os.MkdirTemp("", "tidemark-example")
	defer os.RemoveAll(dir)
	db, p := attached(ctx, dir)
	defer db.Close()

	show := func() {
		s, err := p.Status(ctx)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("in step: %v, dirty: %d, snapshot: %v\n", s.InStep, s.Dirty, s.Snapshot != nil)
	}
	if _, err := db.NewInsert().Model(&Note{Title: "milk"}).Exec(ctx); err != nil {
		log.Fatal(err)
	}
	show()
	if _, err := p.Sync(ctx); err != nil {
		log.Fatal(err)
	}
	show()
	// Output:
	// in step: false, dirty: 1, snapshot: false
	// in step: true, dirty: 0, snapshot: true
}

// Restore brings the database back on a new device; the next Sync downloads only
// what came after the snapshot.
func ExampleRestore() {
	ctx := context.Background()
	dir, _ := os.MkdirTemp("", "tidemark-example")
	defer os.RemoveAll(dir)
	server, bucket := memory.NewServer(), memory.NewStore()
	db := open(filepath.Join(dir, "phone.db"))
	defer db.Close()
	if _, err := tidemark.Attach(ctx, db); err != nil {
		log.Fatal(err)
	}
	p, err := tidemark.New(ctx, db, server.Remote(), bucket, tidemark.WithBackup(1000, 24*time.Hour, 3))
	if err != nil {
		log.Fatal(err)
	}
	for _, title := range []string{"in the snapshot", "after it"} {
		if _, err := db.NewInsert().Model(&Note{Title: title}).Exec(ctx); err != nil {
			log.Fatal(err)
		}
		if _, err := p.Sync(ctx); err != nil {
			log.Fatal(err)
		}
	}

	path := filepath.Join(dir, "new-phone.db")
	if _, err := tidemark.Restore(ctx, path, bucket); err != nil {
		log.Fatal(err)
	}
	restored := open(path)
	defer restored.Close()
	q, err := tidemark.New(ctx, restored, server.Remote(), bucket)
	if err != nil {
		log.Fatal(err)
	}
	before, _ := restored.NewSelect().Model((*Note)(nil)).Count(ctx)
	r, err := q.Sync(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("restored", before, "and downloaded", r.Total().Downloaded)
	// Output:
	// restored 1 and downloaded 1
}
