package tidemark

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/gofrs/flock"
	"github.com/uptrace/bun"
	"go.uber.org/zap"

	"github.com/tidemark-sync/tidemark/messages"
	"github.com/tidemark-sync/tidemark/persistence"
	"github.com/tidemark-sync/tidemark/stages"
)

// Remote is the server: documents below one scope and the Devices collection beside
// them. adapters/firestore, adapters/file and adapters/memory have one.
type Remote interface {
	stages.DeviceReader
	stages.DocumentReader
	stages.Committer
}

// SnapshotStore is the bucket, or a prefix of one. adapters/s3, adapters/file and
// adapters/memory have one. It may have a method Place() string, which says where it is,
// the same in every process: then a device notices that it is given another store, and
// looks which snapshots are in it.
type SnapshotStore interface {
	stages.ObjectStore
}

// Encryption keeps snapshots from those who can read the bucket. adapters/age has one.
type Encryption = persistence.Encryption

// Pipeline keeps one database in step with one remote.
type Pipeline struct {
	db     *bun.DB
	remote Remote
	store  SnapshotStore
	place  string // of the store
	local  *persistence.Local
	set    settings
	lock   *flock.Flock // nil for a database in memory
	mu     sync.Mutex   // one cycle at a time in this process
	soon   chan struct{}
}

// New makes a pipeline for an attached database. store may be nil: then nothing is
// backed up. It creates tidemark's own tables where they are missing; it uses no
// network and starts no goroutine.
func New(ctx context.Context, db *bun.DB, remote Remote, store SnapshotStore, opts ...Option) (*Pipeline, error) {
	if db == nil || remote == nil {
		return nil, fmt.Errorf("%w: New needs a database and a remote", ErrInvalidOption)
	}
	p := &Pipeline{db: db, set: defaults(), soon: make(chan struct{}, 1)}
	for _, o := range opts {
		if err := o(&p.set); err != nil {
			return nil, err
		}
	}
	p.remote = watchedRemote{remote, p.set.tracer}
	if store != nil {
		p.store, p.place = watchedStore{store, p.set.tracer}, placeOf(store)
	}
	var err error
	if p.local, err = persistence.Open(ctx, db, p.set.device); err != nil {
		return nil, err
	}
	p.local.SetResolvers(p.set.resolvers)
	p.local.SetDeleteGuard(p.set.guard)
	if store != nil && p.set.encrypt == nil {
		p.set.log.Warn("snapshots are not encrypted: who can read the store can read the rows (pipeline --key-file, or WithEncryption)")
	}
	if c, ok := remote.(cautious); ok && c.Caution() != "" {
		p.set.log.Warn(c.Caution())
	}
	path, err := p.local.Path(ctx)
	if err != nil {
		return nil, err
	}
	if path != "" {
		p.lock = flock.New(lockName(path))
	}
	return p, nil
}

// placeOf is where a store is; "" when it does not tell.
func placeOf(store SnapshotStore) string {
	if s, ok := store.(interface{ Place() string }); ok {
		return s.Place()
	}
	return ""
}

func (p *Pipeline) objects() stages.ObjectStore {
	if p.store == nil {
		return nil
	}
	return p.store
}

// Topology says what is wired to what.
func (p *Pipeline) Topology(ctx context.Context) (Graph, error) {
	w := &wiring{set: p.set}
	p.wire(w, nil)
	schema, err := p.local.Schema(ctx)
	if err != nil {
		return w.graph, err
	}
	for _, t := range schema.Tables {
		parents, err := p.local.Parents(ctx, t.Name)
		if err != nil {
			return w.graph, err
		}
		w.graph.Tables = append(w.graph.Tables, GraphTable{t.Name, parents})
	}
	return w.graph, nil
}

// Topology is the graph without a database.
func Topology() Graph {
	w := &wiring{}
	(&Pipeline{}).wire(w, nil)
	return w.graph
}

// Sync runs one cycle and returns what it moved and what it cost. While another
// cycle runs on the same file, in this process or another, it waits. After an error
// everything that was not finished is still dirty or still to be downloaded, and the
// next Sync goes on from there.
func (p *Pipeline) Sync(ctx context.Context) (Report, error) { return p.sync(ctx, mode{}) }

// SyncFull runs one cycle that compares every document with every row, not only
// what is new: it finds documents that somebody wrote who is no device, and makes a
// snapshot when the store was emptied. It is billed one read a document.
func (p *Pipeline) SyncFull(ctx context.Context) (Report, error) {
	return p.sync(ctx, mode{full: true})
}

// AllowDeletes lets the next download delete as much as it wants, once; see
// WithDeleteGuard.
func (p *Pipeline) AllowDeletes(ctx context.Context) error { return p.local.AllowDeletes(ctx) }

// mode is how a cycle differs from the usual one.
type mode struct {
	full  bool // compare everything
	knock bool // try nothing again
}

func (p *Pipeline) sync(ctx context.Context, m mode) (report Report, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	unlock, err := p.acquire(ctx)
	if err != nil {
		return Report{}, err
	}
	defer unlock()
	if err := current(ctx, p.db); err != nil {
		return Report{}, err
	}
	if err := p.local.CheckResolvers(ctx); err != nil {
		return Report{}, err
	}
	if err := p.local.CheckScope(ctx, p.remote.Scope()); err != nil {
		return Report{}, err
	}
	p.local.ForSnapshots(p.remote.Scope(), p.set.encrypt)
	p.local.InStore(p.place, m.full)
	cycle := newCycle()
	ctx, ended := p.begin(ctx, cycle, m.full)
	defer func() { ended(report, err) }()
	var again bool
	for round := range p.set.rounds {
		if round > 0 { // the application may have changed its schema meanwhile
			if err = current(ctx, p.db); err != nil {
				break
			}
		}
		var last messages.BackupReady
		last, err = p.round(ctx, messages.SyncRequested{Cycle: cycle, Round: round, Full: m.full && round == 0}, m.knock)
		if berr := p.bind(context.WithoutCancel(ctx), cycle, round); berr != nil {
			err = errors.Join(err, berr)
			break
		}
		if errors.Is(err, messages.ErrReadTimeTooOld) || errors.Is(err, messages.ErrSchemaChanged) || errors.Is(err, ErrNotAttached) { // ours went with a table that was rebuilt
			continue // a new check, and on from the positions
		}
		again = last.Again
		if err != nil || !again {
			break
		}
	}
	var rerr error
	report, rerr = p.report(context.WithoutCancel(ctx), cycle)
	for _, w := range report.Warnings {
		p.set.log.Warn(w, zap.String("cycle", cycle))
	}
	report.InStep = err == nil && !again && rerr == nil
	if err == nil {
		err = rerr
	}
	if err == nil {
		err = p.local.TrimLedger(ctx)
	}
	p.tell(ctx, report, err)
	return report, err
}

// tell logs how a cycle ended: at info level when it moved something, at warn level
// when it will be tried again, at error level when somebody has to do something.
func (p *Pipeline) tell(ctx context.Context, r Report, err error) {
	log := p.set.log.With(zap.String("cycle", r.Cycle))
	t := r.Total()
	switch class, _ := p.set.retry.of(err); {
	case err == nil && t.Downloaded+t.Applied+t.Uploaded+t.Conflicts == 0 && r.Snapshot == nil: // what waits or was set aside stays where it is
		log.Debug("nothing to move", zap.Bool("inStep", r.InStep), zap.Int64("waiting", t.Waiting), zap.Int64("setAside", t.Dead))
	case err == nil:
		log.Info("cycle done", zap.Bool("inStep", r.InStep), zap.Int64("downloaded", t.Downloaded), zap.Int64("uploaded", t.Uploaded), zap.Int64("conflicts", t.Conflicts),
			zap.Int64("waiting", t.Waiting), zap.Int64("setAside", t.Dead), zap.Bool("snapshot", r.Snapshot != nil))
	case ctx.Err() != nil:
		log.Info("cycle stopped; the next one goes on from here")
	case errors.Is(err, ErrUnavailable), errors.Is(err, messages.ErrConflict), errors.Is(err, ErrLocked), errors.Is(err, messages.ErrReadTimeTooOld), errors.Is(err, messages.ErrSchemaChanged):
		log.Warn("cycle failed; the next one goes on from here", zap.String("class", class), zap.Error(err))
	default:
		log.Error("cycle failed; somebody has to see to it", zap.String("class", class), zap.Error(err))
	}
}

// bind ties the database to the remote's scope once that has answered; a URL that
// was mistyped ties it to nothing.
func (p *Pipeline) bind(ctx context.Context, cycle string, round int) error {
	answered, err := p.local.StageDone(ctx, cycle, round, messages.StageCheckDevices)
	if err != nil || !answered {
		return err
	}
	return p.local.Bind(ctx, p.remote.Scope())
}

// current attaches again when the application changed its schema.
func current(ctx context.Context, db *bun.DB) error {
	stale, err := persistence.Stale(ctx, db)
	if err != nil || !stale {
		return err
	}
	_, err = persistence.Attach(ctx, db, persistence.AttachOptions{})
	return err
}

// acquire takes the file's cycle lock, which a crashed process releases by dying.
func (p *Pipeline) acquire(ctx context.Context) (func(), error) {
	if p.lock == nil {
		return func() {}, nil
	}
	if ok, err := p.lock.TryLockContext(ctx, 100*time.Millisecond); err != nil || !ok {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("wait for another program's sync of the same file: %w", context.Cause(ctx))
		}
		return nil, fmt.Errorf("lock the database for a sync (%s): %w: %w", p.lock.Path(), ErrReadOnly, err)
	}
	path, err := p.local.Path(ctx)
	if err == nil {
		err = persistence.RemoveTemporary(path)
	}
	if err != nil {
		_ = p.lock.Unlock()
		return nil, err
	}
	return func() { _ = p.lock.Unlock() }, nil
}

// round sends one message through the stages and waits for its end.
func (p *Pipeline) round(ctx context.Context, m messages.SyncRequested, knock bool) (messages.BackupReady, error) {
	w, err := newWiring(p.set)
	if err != nil {
		return messages.BackupReady{}, err
	}
	w.knock = knock
	if err := p.letters(ctx, w, m.Cycle); err != nil {
		return messages.BackupReady{}, err
	}
	w.watch = watchOf(ctx).on(m.Round)
	resolved := make(chan struct{})
	var once sync.Once
	var last messages.BackupReady
	var failure error
	w.failed = func(err error) { once.Do(func() { failure = err; close(resolved) }) }
	w.record = func(s messages.Step) {
		s.Cycle, s.Round = m.Cycle, m.Round
		if err := p.local.Step(context.WithoutCancel(ctx), s); err != nil {
			p.set.log.Warn("the step ledger could not be written", zap.Error(err))
		}
	}
	p.wire(w, func(b messages.BackupReady) { once.Do(func() { last = b; close(resolved) }) })
	if err := run(ctx, w, syncRequested, m, resolved); err != nil {
		return last, err
	}
	return last, failure
}

func newCycle() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return time.Now().UTC().Format("20060102T150405Z") + "-" + hex.EncodeToString(b[:])
}
