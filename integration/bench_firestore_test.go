package integration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	cloud "cloud.google.com/go/firestore"
	vkit "cloud.google.com/go/firestore/apiv1"
	pb "cloud.google.com/go/firestore/apiv1/firestorepb"
	"github.com/uptrace/bun"
	"google.golang.org/api/iterator"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	tidemark "github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/adapters/firestore"
	"github.com/tidemark-sync/tidemark/adapters/memory"
	"github.com/tidemark-sync/tidemark/integration/servers"
	"github.com/tidemark-sync/tidemark/messages"
)

const (
	cloudRows = 20_000
	// literalRows is what the article's way is measured on: one at a time, all of
	// them would take a minute.
	literalRows = 500
)

// emulated is a project on an emulator of its own, reached in all the ways that are
// compared. The emulator keeps everything in memory, also what was cleared, and
// slows down: so each measurement gets a new one.
type emulated struct {
	addr, project string
	raw           *vkit.Client  // the generated client: what the wire costs
	official      *cloud.Client // what an application would use
}

func newEmulated(b *testing.B) *emulated {
	b.Helper()
	servers.Stop()
	e := &emulated{addr: servers.Firestore(b), project: servers.Project(b)}
	b.Setenv("FIRESTORE_EMULATOR_HOST", e.addr)
	conn, err := grpc.NewClient("passthrough:///"+e.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.Fatal(err)
	}
	if e.raw, err = vkit.NewClient(b.Context(), option.WithGRPCConn(conn)); err != nil {
		b.Fatal(err)
	}
	if e.official, err = cloud.NewClient(b.Context(), e.project); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = e.official.Close(); _ = e.raw.Close() })
	return e
}

// warm lets the emulator's compiler see as many commits as are measured, and a
// query; they are in another collection.
func (e *emulated) warm(b *testing.B, commits []messages.Commit) {
	b.Helper()
	commits = slices.Clone(commits)
	for i := range commits {
		commits[i].Writes = slices.Clone(commits[i].Writes)
		for k := range commits[i].Writes {
			commits[i].Writes[k].Document.Table = "warm"
		}
	}
	timed(b, func() error { return e.rawUpload(b.Context(), commits) })
	timed(b, func() error {
		_, err := e.official.Doc(e.scope()).Collection("warm").Documents(b.Context()).GetAll()
		return err
	})
}

func (e *emulated) scope() string { return "users/alice" }

func (e *emulated) parent() string {
	return "projects/" + e.project + "/databases/(default)/documents/" + e.scope()
}

func (e *emulated) remote(b *testing.B) tidemark.Remote {
	b.Helper()
	r, err := firestore.Open(b.Context(), firestore.Config{Emulator: e.addr, Project: e.project, Scope: e.scope()})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = r.Close() })
	return r
}

// recorded keeps the commits that pass through it.
type recorded struct {
	tidemark.Remote
	commits []messages.Commit
}

func (r *recorded) Commit(ctx context.Context, c messages.Commit) (messages.Committed, error) {
	r.commits = append(r.commits, c)
	return r.Remote.Commit(ctx, c)
}

// fields is a document as the server gets it from us.
func fields(d *messages.Document) map[string]any {
	f := map[string]any{
		"createdOn": d.CreatedOn, "updatedOn": d.UpdatedOn, "updatedBy": d.UpdatedBy, "deleted": d.Deleted, "stamp": d.Stamp.String(),
		"uploadedOn": cloud.ServerTimestamp,
	}
	maps.Copy(f, d.Fields)
	return f
}

func value(v any) *pb.Value {
	switch v := v.(type) {
	case int64:
		return &pb.Value{ValueType: &pb.Value_IntegerValue{IntegerValue: v}}
	case float64:
		return &pb.Value{ValueType: &pb.Value_DoubleValue{DoubleValue: v}}
	case string:
		return &pb.Value{ValueType: &pb.Value_StringValue{StringValue: v}}
	case bool:
		return &pb.Value{ValueType: &pb.Value_BooleanValue{BooleanValue: v}}
	default:
		return &pb.Value{ValueType: &pb.Value_NullValue{}}
	}
}

// rawUpload commits the same documents, as many a commit, from memory: nothing is
// read from SQLite and nothing is remembered.
func (e *emulated) rawUpload(ctx context.Context, commits []messages.Commit) error {
	for i := range commits {
		req := &pb.CommitRequest{Database: "projects/" + e.project + "/databases/(default)"}
		for k := range commits[i].Writes {
			d := &commits[i].Writes[k].Document
			doc := &pb.Document{Name: e.parent() + "/" + d.Table + "/" + d.ID, Fields: map[string]*pb.Value{}}
			for name, v := range fields(d) {
				if name != "uploadedOn" {
					doc.Fields[name] = value(v)
				}
			}
			req.Writes = append(req.Writes, &pb.Write{
				Operation:       &pb.Write_Update{Update: doc},
				CurrentDocument: &pb.Precondition{ConditionType: &pb.Precondition_Exists{Exists: false}},
				UpdateTransforms: []*pb.DocumentTransform_FieldTransform{{
					FieldPath:     "uploadedOn",
					TransformType: &pb.DocumentTransform_FieldTransform_SetToServerValue{SetToServerValue: pb.DocumentTransform_FieldTransform_REQUEST_TIME},
				}},
			})
		}
		if len(req.Writes) == 0 {
			continue
		}
		if _, err := e.raw.Commit(ctx, req); err != nil {
			return err
		}
	}
	return nil
}

// literalUpload is the article's: dirty rows one by one, save the id that the
// server returns.
func (e *emulated) literalUpload(ctx context.Context, db *bun.DB, docs []messages.Document) error {
	for i := range docs {
		d := &docs[i]
		if _, err := e.official.Doc(e.scope()).Collection(d.Table).Doc(d.ID).Set(ctx, fields(d)); err != nil {
			return err
		}
		if _, err := db.DB.ExecContext(ctx, `UPDATE item SET serverId = ?, isDirty = 0 WHERE clientId = ?`, d.ID, d.ID); err != nil {
			return err
		}
	}
	return nil
}

// dirtyDatabase is an attached database with rows that nobody has uploaded.
func dirtyDatabase(b *testing.B) *bun.DB {
	b.Helper()
	db := benchDatabase(b, true)
	if _, err := db.DB.Exec(`DELETE FROM box; DELETE FROM tidemark_tombstones`); err != nil {
		b.Fatal(err)
	}
	if _, err := db.DB.Exec(`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
		INSERT INTO item (name, quantity, price, note, tag) SELECT 'the item with the number ' || i, i, i / 7.0, printf('%040d, as long as notes are', i), 'blue' FROM n`,
		cloudRows); err != nil {
		b.Fatal(err)
	}
	return db
}

func cycle(b *testing.B, db *bun.DB, remote tidemark.Remote) func() error {
	b.Helper()
	p, err := tidemark.New(b.Context(), db, remote, nil)
	if err != nil {
		b.Fatal(err)
	}
	return func() error {
		r, err := p.Sync(b.Context())
		if n := r.Total(); err == nil && n.Uploaded+n.Applied != cloudRows {
			err = fmt.Errorf("%d of %d rows went over: %+v", n.Uploaded+n.Applied, cloudRows, r)
		}
		return err
	}
}

// Uploading from a database, a whole cycle, against raw commits of the same
// documents from memory; beside them the article taken literally.
func BenchmarkUpload(b *testing.B) {
	sample := sampleCommits(b)
	var r, literal ratio
	for b.Loop() {
		e := newEmulated(b)
		e.warm(b, sample)
		r.raw = append(r.raw, timed(b, func() error { return e.rawUpload(b.Context(), sample) }))
		literal.raw = append(literal.raw, timed(b, func() error { return e.literalUpload(b.Context(), dirtyDatabase(b), some(sample)) }))
		e = newEmulated(b)
		e.warm(b, sample)
		r.ours = append(r.ours, timed(b, cycle(b, dirtyDatabase(b), e.remote(b))))
	}
	r.report(b, cloudRows, "ratio-to-raw-commits")
	b.ReportMetric(literalRows/median(literal.raw).Seconds(), "literal-rows/s")
}

// sampleCommits are the commits that an upload makes.
func sampleCommits(b *testing.B) []messages.Commit {
	b.Helper()
	r := &recorded{Remote: memory.NewServer().Remote()}
	timed(b, cycle(b, dirtyDatabase(b), r))
	return r.commits
}

func some(commits []messages.Commit) []messages.Document {
	var docs []messages.Document
	for _, c := range commits {
		for _, w := range c.Writes {
			if len(docs) < literalRows {
				docs = append(docs, w.Document)
			}
		}
	}
	return docs
}

// Downloading into an empty database, a whole cycle, against one raw query that
// reads the same documents and throws them away: by the official client, and by the
// generated client below it, which decodes nothing.
func BenchmarkDownload(b *testing.B) {
	sample := sampleCommits(b)
	e := newEmulated(b)
	e.warm(b, sample)
	timed(b, cycle(b, dirtyDatabase(b), e.remote(b)))
	timed(b, func() error { return e.officialDownload(b.Context()) })
	var r, wire, literal ratio
	for b.Loop() {
		r.raw = append(r.raw, timed(b, func() error { return e.officialDownload(b.Context()) }))
		wire.raw = append(wire.raw, timed(b, func() error { return e.wireDownload(b.Context()) }))
		r.ours = append(r.ours, timed(b, cycle(b, benchDatabase(b, true), e.remote(b))))
		db := benchDatabase(b, true)
		literal.raw = append(literal.raw, timed(b, func() error { return e.literalDownload(b.Context(), db) }))
	}
	r.report(b, cloudRows, "ratio-to-raw-query")
	b.ReportMetric(median(wire.raw).Seconds()/median(r.ours).Seconds(), "ratio-to-generated-client")
	b.ReportMetric(cloudRows/median(wire.raw).Seconds(), "generated-rows/s")
	b.ReportMetric(literalRows/median(literal.raw).Seconds(), "literal-rows/s")
}

func (e *emulated) officialDownload(ctx context.Context) error {
	docs := e.official.Doc(e.scope()).Collection("item").OrderBy(cloud.DocumentID, cloud.Asc).Documents(ctx)
	defer docs.Stop()
	for n := 0; ; n++ {
		d, err := docs.Next()
		if errors.Is(err, iterator.Done) {
			if n != cloudRows {
				return fmt.Errorf("%d documents", n)
			}
			return nil
		}
		if err != nil {
			return err
		}
		if len(d.Data()) == 0 {
			return errors.New("an empty document")
		}
	}
}

func (e *emulated) wireDownload(ctx context.Context) error {
	stream, err := e.raw.RunQuery(ctx, &pb.RunQueryRequest{
		Parent: e.parent(),
		QueryType: &pb.RunQueryRequest_StructuredQuery{StructuredQuery: &pb.StructuredQuery{
			From: []*pb.StructuredQuery_CollectionSelector{{CollectionId: "item"}},
			OrderBy: []*pb.StructuredQuery_Order{{
				Field: &pb.StructuredQuery_FieldReference{FieldPath: "__name__"}, Direction: pb.StructuredQuery_ASCENDING,
			}},
		}},
	})
	if err != nil {
		return err
	}
	for n := 0; ; {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			if n != cloudRows {
				return fmt.Errorf("%d documents", n)
			}
			return nil
		}
		if err != nil {
			return err
		}
		if resp.GetDocument() != nil {
			n++
		}
	}
}

// literalDownload is the article's: what came after the last time, not by me, each
// saved on its own.
func (e *emulated) literalDownload(ctx context.Context, db *bun.DB) error {
	docs := e.official.Doc(e.scope()).Collection("item").Where("updatedOn", ">", 0).Where("updatedBy", "!=", "me").
		OrderBy("updatedOn", cloud.Asc).OrderBy("updatedBy", cloud.Asc).Limit(literalRows).Documents(ctx)
	defer docs.Stop()
	for n := 0; ; n++ {
		d, err := docs.Next()
		if errors.Is(err, iterator.Done) {
			if n != literalRows {
				return fmt.Errorf("%d documents", n)
			}
			return nil
		}
		if err != nil {
			return err
		}
		f := d.Data()
		id := d.Ref.ID
		if _, err := db.DB.ExecContext(ctx, `INSERT INTO item (id, clientId, serverId, createdOn, updatedOn, updatedBy, isDirty, name, quantity, price, note, tag)
			VALUES (?, ?, ?, ?, ?, ?, 0, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET name = excluded.name, quantity = excluded.quantity,
			price = excluded.price, note = excluded.note, tag = excluded.tag, updatedOn = excluded.updatedOn, updatedBy = excluded.updatedBy`,
			f["id"], id, id, f["createdOn"], f["updatedOn"], strings.ToLower(fmt.Sprint(f["updatedBy"])), f["name"], f["quantity"], f["price"], f["note"], f["tag"]); err != nil {
			return err
		}
	}
}
