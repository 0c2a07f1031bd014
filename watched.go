package tidemark

import (
	"context"
	"io"
	"sync"

	"github.com/tidemark-sync/tidemark/messages"
)

// How often a long call tells its progress.
const (
	tellDocuments = 500
	tellBytes     = 1 << 20
)

// call begins a call of the server or the store. The function it returns ends it.
func call(ctx context.Context, t Tracer, name, table string) (context.Context, func(messages.Outcome)) {
	e := effortOf(ctx)
	end := func(messages.Outcome) {}
	if t != nil {
		s := messages.Span{Kind: messages.SpanCall, Name: name}
		if e != nil {
			s.Work = e.work
		}
		s.Table = table
		ctx, end = t.Start(ctx, s)
	}
	return ctx, func(o messages.Outcome) {
		e.spend(o.Billed, o.Store)
		end(o)
	}
}

// watchedRemote is a remote whose calls are counted, told and traced.
type watchedRemote struct {
	Remote
	tracer Tracer
}

func reads(n int64) messages.Billed { return messages.Billed{Reads: n} }

func (r watchedRemote) Devices(ctx context.Context, since int64) (messages.DeviceList, error) {
	ctx, end := call(ctx, r.tracer, "list devices", "")
	list, err := r.Remote.Devices(ctx, since)
	end(messages.Outcome{Billed: reads(list.Reads), Documents: int64(len(list.Devices)), Class: class(err)})
	return list, err
}

func (r watchedRemote) Device(ctx context.Context, id string) (messages.Device, error) {
	ctx, end := call(ctx, r.tracer, "read device", "")
	d, err := r.Remote.Device(ctx, id)
	o := messages.Outcome{Class: class(err)}
	if err == nil {
		o.Billed, o.Documents = reads(1), 1
	}
	end(o)
	return d, err
}

func (r watchedRemote) Read(ctx context.Context, q messages.Query, yield func(messages.Document) error) (int64, error) {
	e := effortOf(ctx)
	ctx, end := call(ctx, r.tracer, "query documents", q.Table)
	var got, told int64
	n, err := r.Remote.Read(ctx, q, func(d messages.Document) error {
		got++
		if got-told == tellDocuments {
			e.moved(messages.DocumentsRead, got-told)
			told = got
		}
		return yield(d)
	})
	e.moved(messages.DocumentsRead, got-told)
	end(messages.Outcome{Billed: reads(n), Documents: got, Class: class(err)})
	return n, err
}

func (r watchedRemote) Documents(ctx context.Context, table string, ids []string, readTime int64) (messages.Page, error) {
	e := effortOf(ctx)
	ctx, end := call(ctx, r.tracer, "look up documents", table)
	page, err := r.Remote.Documents(ctx, table, ids, readTime)
	e.moved(messages.DocumentsRead, int64(len(page.Documents)))
	end(messages.Outcome{Billed: reads(page.Reads), Documents: int64(len(page.Documents)), Class: class(err)})
	return page, err
}

func (r watchedRemote) Commit(ctx context.Context, c messages.Commit) (messages.Committed, error) {
	e := effortOf(ctx)
	ctx, end := call(ctx, r.tracer, "commit", "")
	done, err := r.Remote.Commit(ctx, c)
	o := messages.Outcome{Class: class(err)}
	if err == nil {
		o.Billed = messages.Billed{Writes: done.Writes, Deletes: done.Deletes}
		o.Documents = int64(len(c.Writes))
		e.moved(messages.RowsUploaded, o.Documents)
	}
	end(o)
	return done, err
}

// watchedStore is a store whose calls are counted, told and traced.
type watchedStore struct {
	SnapshotStore
	tracer Tracer
}

func (s watchedStore) Put(ctx context.Context, key string, body io.Reader, cond messages.Condition) (messages.Object, error) {
	in := &toldReader{r: body, effort: effortOf(ctx)}
	ctx, end := call(ctx, s.tracer, "put object", "")
	obj, err := s.SnapshotStore.Put(ctx, key, in, cond)
	in.effort.moved(messages.BytesStored, in.n-in.told)
	end(messages.Outcome{Store: messages.StoreUse{Puts: obj.Requests, BytesUp: in.n}, Class: class(err)})
	return obj, err
}

// Get ends with its body: what is downloaded is downloaded then.
func (s watchedStore) Get(ctx context.Context, key string, from int64) (io.ReadCloser, messages.Object, error) {
	ctx, end := call(ctx, s.tracer, "get object", "")
	body, obj, err := s.SnapshotStore.Get(ctx, key, from)
	if err != nil {
		end(messages.Outcome{Store: messages.StoreUse{Gets: 1}, Class: class(err)})
		return body, obj, err
	}
	return &gotBody{ReadCloser: body, end: end}, obj, nil
}

func (s watchedStore) List(ctx context.Context, prefix string) ([]messages.Object, error) {
	ctx, end := call(ctx, s.tracer, "list objects", "")
	list, err := s.SnapshotStore.List(ctx, prefix)
	var use messages.StoreUse
	for _, o := range list {
		use.Puts += o.Requests // a listing is priced like a PUT
	}
	end(messages.Outcome{Store: use, Documents: int64(len(list)), Class: class(err)})
	return list, err
}

func (s watchedStore) Delete(ctx context.Context, key string) error {
	ctx, end := call(ctx, s.tracer, "delete object", "")
	err := s.SnapshotStore.Delete(ctx, key)
	end(messages.Outcome{Class: class(err)})
	return err
}

// toldReader tells how much of a body has gone up.
type toldReader struct {
	r       io.Reader
	effort  *effort
	n, told int64
}

func (t *toldReader) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	t.n += int64(n)
	if t.n-t.told >= tellBytes {
		t.effort.moved(messages.BytesStored, t.n-t.told)
		t.told = t.n
	}
	return n, err
}

type gotBody struct {
	io.ReadCloser
	n    int64
	once sync.Once
	end  func(messages.Outcome)
}

func (b *gotBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.n += int64(n)
	return n, err
}

func (b *gotBody) Close() error {
	err := b.ReadCloser.Close()
	b.once.Do(func() {
		b.end(messages.Outcome{Store: messages.StoreUse{Gets: 1, BytesDown: b.n}, Class: class(err)})
	})
	return err
}
