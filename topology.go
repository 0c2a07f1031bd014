package tidemark

import (
	"github.com/tidemark-sync/tidemark/messages"
	"github.com/tidemark-sync/tidemark/stages"
)

// The topics of one cycle, by the type that travels on them.
var (
	syncRequested    = topic[messages.SyncRequested]{"SyncRequested"}
	devicesChecked   = topic[messages.DevicesChecked]{"DevicesChecked"}
	tableRequested   = topic[messages.TableRequested]{"TableRequested"}
	tableDownloaded  = topic[messages.TableDownloaded]{"TableDownloaded"}
	downloadSettled  = topic[messages.DownloadSettled]{"DownloadSettled"}
	dirtyUploaded    = topic[messages.DirtyUploaded]{"DirtyUploaded"}
	deviceRegistered = topic[messages.DeviceRegistered]{"DeviceRegistered"}
	tombstonesPurged = topic[messages.TombstonesPurged]{"TombstonesPurged"}
	backupReady      = topic[messages.BackupReady]{"BackupReady"}
)

// wire connects the stages; it reads as the diagram that `pipeline topology` draws.
func (p *Pipeline) wire(w *wiring, done func(messages.BackupReady)) {
	download := stages.NewDownload(p.remote, p.local)
	settle := stages.NewSettle(p.remote, p.local)

	connect(w, syncRequested, "check devices", 1, stages.NewCheckDevices(p.remote, p.local).Handle, devicesChecked)
	connect(w, devicesChecked, "request tables", 1, download.Start, tableRequested)
	connect(w, devicesChecked, "nothing new", 1, settle.Nothing, downloadSettled)
	connect(w, tableRequested, "download", p.set.parallel, download.Handle, tableDownloaded)
	connect(w, tableDownloaded, "request children", 1, download.Release, tableRequested)
	connect(w, tableDownloaded, "settle", 1, settle.Handle, downloadSettled)
	connect(w, downloadSettled, "upload", 1, stages.NewUpload(p.remote, p.local).Handle, dirtyUploaded)
	connect(w, dirtyUploaded, "register", 1, stages.NewRegister(p.remote, p.local).Handle, deviceRegistered)
	connect(w, deviceRegistered, "purge", 1, stages.NewPurge(p.remote, p.objects(), p.local, p.set.purge).Handle, tombstonesPurged)
	connect(w, tombstonesPurged, "back up", 1, stages.NewBackUp(p.objects(), p.local, p.set.backup).Handle, backupReady)
	finish(w, backupReady, done)
}
