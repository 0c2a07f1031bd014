package tidemark

import (
	"fmt"
	"runtime"
	"time"
	"unicode/utf8"

	"go.uber.org/zap"

	"github.com/tidemark-sync/tidemark/messages"
	"github.com/tidemark-sync/tidemark/persistence"
	"github.com/tidemark-sync/tidemark/stages"
)

// settings are the defaults, each with its reason.
type settings struct {
	log      *zap.Logger
	device   persistence.DeviceInfo
	backup   stages.BackupPolicy
	purge    stages.PurgePolicy
	guard    persistence.DeleteGuard
	interval time.Duration
	// soonAfter is how long nothing was written when Run begins a cycle for it.
	soonAfter time.Duration
	addresses func() string // this machine's in the network
	retry     RetryPolicy
	parallel  int
	rounds    int
	grace     time.Duration

	resolvers map[string]persistence.Resolver
	bus       func() Bus // nil: a GoChannel
	encrypt   Encryption
	budget    int64 // reads a day; 0: none
	observers []func(messages.Event)
	tracer    Tracer // nil: nobody traces
}

func defaults() settings {
	return settings{
		log:    zap.NewNop(), // a library is silent until it is given a logger
		device: persistence.DeviceInfo{Platform: runtime.GOOS + "/" + runtime.GOARCH},
		backup: stages.BackupPolicy{
			MinRows:  1000,           // a restore then downloads at most about as many
			MinBytes: 16 << 20,       // or as much: two seconds on a good line
			MaxAge:   24 * time.Hour, // a small application is backed up every day
			Takeover: time.Hour,      // Big Brother may be in a pocket; a restore downloads an hour's changes more
			Keep:     3,              // the newest may be the one with the mistake in it
			Days:     7,              // what was deleted by mistake is missed within a week
			Grace:    24 * time.Hour, // a restore over a slow line ends within a day
		},
		purge: stages.PurgePolicy{
			Every:  24 * time.Hour,      // it reads every device's record
			Unseen: 90 * 24 * time.Hour, // a phone in a drawer; afterwards it reads everything again
		},
		guard:     persistence.DeleteGuard{Share: 0.5, Rows: 100}, // somebody emptied a table by mistake, or by malice
		interval:  30 * time.Second,                               // one read each: 2,880 a day
		soonAfter: time.Second,                                    // one save of an application is often several transactions
		addresses: addresses,
		retry:     DefaultRetryPolicy(),
		parallel:  4,                // tables that download side by side; more only wait for SQLite's one writer
		rounds:    5,                // another device's edits may overtake ours; the next cycle goes on
		grace:     10 * time.Second, // what a cycle may take to end after Run was asked to stop
	}
}

// Option changes a default of New.
type Option func(*settings) error

// WithLogger logs each step of a cycle at debug level and failures at warn level.
func WithLogger(log *zap.Logger) Option {
	return func(s *settings) error {
		if log == nil {
			return fmt.Errorf("%w: WithLogger needs a logger", ErrInvalidOption)
		}
		s.log = log
		return nil
	}
}

// WithEncryption encrypts snapshots; adapters/age has keys and passphrases. Without it
// they are not encrypted, which the log and every Report say. Changing the key takes
// effect with the next snapshot; the older ones stay readable with the older key.
func WithEncryption(e Encryption) Option {
	return func(s *settings) error {
		if e == nil {
			return fmt.Errorf("%w: WithEncryption needs a key", ErrInvalidOption)
		}
		s.encrypt = e
		return nil
	}
}

// WithDevice names this installation in the Devices collection, for people; version
// is the application's.
func WithDevice(name, version string) Option {
	return func(s *settings) error {
		if !utf8.ValidString(name) || !utf8.ValidString(version) || len(name)+len(version) > 1000 {
			return fmt.Errorf("%w: WithDevice takes valid UTF-8 of at most 1,000 bytes", ErrInvalidOption)
		}
		s.device.Name, s.device.Version = name, version
		return nil
	}
}

// WithInterval sets how long Run waits between cycles (default 30 s).
func WithInterval(d time.Duration) Option {
	return func(s *settings) error {
		if d < time.Second {
			return fmt.Errorf("%w: WithInterval takes at least a second, not %v: every cycle is billed", ErrInvalidOption, d)
		}
		s.interval = d
		return nil
	}
}

// WithSyncSoon sets how long nothing must have been written to the database when Run
// begins a cycle because of it (default 1 s; 0 never: the interval alone counts). Writes
// that do not pause hold it up for at most five times as long. Whoever writes it, any
// program and any connection, is noticed; what is not synced starts no cycle.
func WithSyncSoon(quiet time.Duration) Option {
	return func(s *settings) error {
		if quiet < 0 {
			return fmt.Errorf("%w: WithSyncSoon takes no negative time", ErrInvalidOption)
		}
		s.soonAfter = quiet
		return nil
	}
}

// WithBackup says when a snapshot is worth its upload: after rows changes, or when
// the last one is older than age and anything changed (default 1,000 rows, 24 h).
// keep is how many older snapshots stay (default 3); see WithDailySnapshots.
func WithBackup(rows int64, age time.Duration, keep int) Option {
	return func(s *settings) error {
		if rows < 1 || age <= 0 || keep < 0 {
			return fmt.Errorf("%w: WithBackup takes at least one row, a positive age and no negative number to keep", ErrInvalidOption)
		}
		s.backup.MinRows, s.backup.MaxAge, s.backup.Keep = rows, age, keep
		return nil
	}
}

// WithBackupBytes makes a snapshot worth its upload also after rows of so many bytes
// changed (default 16 MiB).
func WithBackupBytes(bytes int64) Option {
	return func(s *settings) error {
		if bytes < 1 {
			return fmt.Errorf("%w: WithBackupBytes takes at least one byte", ErrInvalidOption)
		}
		s.backup.MinBytes = bytes
		return nil
	}
}

// WithDailySnapshots sets for how many days, today included, the last snapshot of
// each day stays beside the newest ones (default 7). Days are UTC.
func WithDailySnapshots(days int) Option {
	return func(s *settings) error {
		if days < 0 {
			return fmt.Errorf("%w: WithDailySnapshots takes no negative number", ErrInvalidOption)
		}
		s.backup.Days = days
		return nil
	}
}

// WithTakeover sets how long a snapshot that is due waits for Big Brother, the device
// that made the last one, before another device makes it and is Big Brother from
// then on (default 1 h). Each device adds up to as much again, so that they do not
// all upload at once. With 0 nobody waits.
func WithTakeover(wait time.Duration) Option {
	return func(s *settings) error {
		if wait < 0 {
			return fmt.Errorf("%w: WithTakeover takes no negative time", ErrInvalidOption)
		}
		s.backup.Takeover = wait
		return nil
	}
}

// WithUnconditionalStore accepts a store that ignores the conditions of writes, which
// is refused otherwise. What is given up: when two devices back up at the same moment
// both believe that they won, the later manifest stands, and it may name the older of
// the two snapshots. Every snapshot that a manifest names still restores.
func WithUnconditionalStore() Option {
	return func(s *settings) error {
		s.backup.Unconditional = true
		return nil
	}
}

// WithRetryPolicy sets what is tried again, how often and after what wait; see
// DefaultRetryPolicy.
func WithRetryPolicy(policy RetryPolicy) Option {
	return func(s *settings) error {
		if err := policy.check(); err != nil {
			return fmt.Errorf("%w: WithRetryPolicy: %w", ErrInvalidOption, err)
		}
		s.retry = policy
		return nil
	}
}

// WithRetries sets how often a stage is tried again within a cycle when the server
// is unavailable (default 4), and the first wait, which doubles: the two numbers of the
// RetryPolicy that matter most.
func WithRetries(n int, first time.Duration) Option {
	return func(s *settings) error {
		if n < 0 || first <= 0 {
			return fmt.Errorf("%w: WithRetries takes no negative number and a positive wait", ErrInvalidOption)
		}
		u := &s.retry.Unavailable
		u.Times, u.Wait = n, Backoff{first, max(first, u.Wait.Max)}
		return nil
	}
}

// WithParallel sets how many tables download side by side (default 4).
func WithParallel(n int) Option {
	return func(s *settings) error {
		if n < 1 {
			return fmt.Errorf("%w: WithParallel takes at least 1", ErrInvalidOption)
		}
		s.parallel = n
		return nil
	}
}

// Contest is one conflict as a Resolver sees it.
type Contest = persistence.Contest

// Resolver decides conflicts by the application's own rule: it returns the values that
// the row is to have; columns that it does not name get the server's. It runs inside a
// transaction on the database, so it must not use the database itself, and it has to
// answer the same to the same question. After an error or a panic the later edit wins.
type Resolver = persistence.Resolver

// WithResolver decides the conflicts of a table whose policy is ByApplication.
func WithResolver(table string, r Resolver) Option {
	return func(s *settings) error {
		if table == "" || r == nil {
			return fmt.Errorf("%w: WithResolver needs a table and a function", ErrInvalidOption)
		}
		if s.resolvers == nil {
			s.resolvers = map[string]persistence.Resolver{}
		}
		s.resolvers[table] = r
		return nil
	}
}

// WithPurge sets how often this device looks for tombstones that every device has
// seen and removes them from the server (default 24 h; 0 never), and how long ago a
// device was last heard of when it no longer counts (default 90 days; a device that
// comes back later reads everything again).
func WithPurge(every, unseen time.Duration) Option {
	return func(s *settings) error {
		if every < 0 || unseen < 24*time.Hour {
			return fmt.Errorf("%w: WithPurge takes no negative time, and at least a day for unseen devices", ErrInvalidOption)
		}
		s.purge = stages.PurgePolicy{Every: every, Unseen: unseen}
		return nil
	}
}

// WithDeleteGuard stops a download that would delete more than share (0 to 1) of a
// table's rows and more than rows of them (default half of the table and 100 rows):
// Sync then fails with ErrMassDelete until AllowDeletes. A share of 1 never stops.
func WithDeleteGuard(share float64, rows int64) Option {
	return func(s *settings) error {
		if !(share >= 0 && share <= 1) || rows < 0 {
			return fmt.Errorf("%w: WithDeleteGuard takes a share from 0 to 1 and no negative number of rows", ErrInvalidOption)
		}
		s.guard = persistence.DeleteGuard{Share: share, Rows: rows}
		return nil
	}
}

// WithBus carries the messages of a cycle on a bus of the application's instead of
// an in-process one: make is called for each round of a cycle, which closes the bus
// when it ends. What a bus promises is of no account: SQLite remembers the work.
func WithBus(make func() Bus) Option {
	return func(s *settings) error {
		if make == nil {
			return fmt.Errorf("%w: WithBus needs a function that makes a bus", ErrInvalidOption)
		}
		s.bus = make
		return nil
	}
}
