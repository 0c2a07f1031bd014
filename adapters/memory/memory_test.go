package memory_test

import (
	"testing"

	"github.com/tidemark-sync/tidemark/adapters/adaptertest"
	"github.com/tidemark-sync/tidemark/adapters/memory"
	"github.com/tidemark-sync/tidemark/messages"
	"github.com/tidemark-sync/tidemark/stages"
)

var (
	_ stages.DeviceReader   = (*memory.Remote)(nil)
	_ stages.DocumentReader = (*memory.Remote)(nil)
	_ stages.Committer      = (*memory.Remote)(nil)
	_ stages.ObjectStore    = (*memory.Store)(nil)
)

func TestRemote(t *testing.T) {
	t.Parallel()
	adaptertest.Remote(t, func(*testing.T) adaptertest.RemotePort { return memory.NewRemote() }, adaptertest.Features{
		ReadTimeTooOld: true,
		Foreign: func(_ *testing.T, r adaptertest.RemotePort, table, id string, fields map[string]any) {
			r.(*memory.Remote).Server().Put(messages.Document{Table: table, ID: id, Fields: fields})
		},
	})
}

func TestObjectStore(t *testing.T) {
	t.Parallel()
	adaptertest.ObjectStore(t, func(*testing.T) stages.ObjectStore { return memory.NewStore() }, adaptertest.Features{ManyObjects: true})
}
