package firestore

import (
	"fmt"
	"strings"
	"unicode/utf8"

	pb "cloud.google.com/go/firestore/apiv1/firestorepb"

	"github.com/tidemark-sync/tidemark/messages"
)

// toDocument reads a document of a table. Anybody may have written it: a field of
// ours that is missing or of another type falls back, see the package comment.
func toDocument(table string, p *pb.Document) messages.Document {
	d := messages.Document{
		Table: table, ID: lastSegment(p.GetName()),
		CreatedOn:  p.GetCreateTime().AsTime().UnixMilli(),
		UpdatedOn:  p.GetUpdateTime().AsTime().UnixMilli(),
		UpdateTime: micros(p.GetUpdateTime()),
		Fields:     make(map[string]any, len(p.GetFields())),
	}
	for name, v := range p.GetFields() {
		switch name {
		case createdOn:
			if ms, ok := toMillis(v); ok {
				d.CreatedOn = ms
			}
		case updatedOn:
			if ms, ok := toMillis(v); ok {
				d.UpdatedOn = ms
			}
		case updatedBy:
			d.UpdatedBy = v.GetStringValue()
		case uploadedOn:
			d.UploadedOn, _ = toMillis(v)
		case deleted:
			d.Deleted = v.GetBooleanValue()
		case survivor:
			d.Survivor = v.GetStringValue()
		case stamp:
			// What is no stamp is what somebody wrote who is no device.
			d.Stamp, _ = messages.ParseStamp(v.GetStringValue())
		case tombstone:
		default:
			if column, ok := columnName(name); ok {
				d.Fields[column] = decode(v)
			}
		}
	}
	return d
}

func lastSegment(name string) string { return name[strings.LastIndexByte(name, '/')+1:] }

// documentWrite names only the fields that the document has, and ours: the others
// keep their value on the server.
func (r *Remote) documentWrite(w *messages.Write) (*pb.Write, error) {
	d := &w.Document
	if !validID(d.ID) {
		return nil, fmt.Errorf("the id %q of a document of table %q is not allowed: %w", d.ID, d.Table, messages.ErrRejected)
	}
	if !utf8.ValidString(d.Table) {
		return nil, fmt.Errorf("the name of table %q is not valid UTF-8: %w", d.Table, messages.ErrRejected)
	}
	name := r.name(collectionID(d.Table), d.ID)
	if w.Purge {
		return &pb.Write{Operation: &pb.Write_Delete{Delete: name}, CurrentDocument: expect(w.Expect)}, nil
	}
	if n := d.Size(); n > messages.MaxDocumentBytes {
		return nil, fmt.Errorf("document %s of table %q has about %d bytes, Firestore takes %d: make the row smaller: %w",
			d.ID, d.Table, n, messages.MaxDocumentBytes, messages.ErrRejected)
	}
	fields := make(map[string]*pb.Value, len(d.Fields)+8)
	mask := make([]string, 0, len(d.Fields)+8)
	set := func(name string, v *pb.Value) {
		fields[name] = v
		mask = append(mask, fieldPath(name))
	}
	for column, v := range d.Fields {
		value, ok := encode(v)
		switch {
		case !utf8.ValidString(column):
			return nil, fmt.Errorf("column %q of document %s of table %q: the name is not valid UTF-8: rename it: %w", column, d.ID, d.Table, messages.ErrRejected)
		case value != nil && !ok:
			return nil, fmt.Errorf("column %q of document %s of table %q is text but not valid UTF-8: store it as a BLOB or correct it: %w", column, d.ID, d.Table, messages.ErrRejected)
		case !ok:
			return nil, fmt.Errorf("column %q of document %s of table %q: Firestore cannot hold a %T: %w", column, d.ID, d.Table, v, messages.ErrRejected)
		}
		set(fieldName(column), value)
	}
	if !utf8.ValidString(d.UpdatedBy) || !utf8.ValidString(d.Survivor) || !utf8.ValidString(d.Stamp.Device) {
		return nil, fmt.Errorf("document %s of table %q names a device or a survivor that is not valid UTF-8: %w", d.ID, d.Table, messages.ErrRejected)
	}
	set(createdOn, integer(d.CreatedOn))
	set(updatedOn, integer(d.UpdatedOn))
	set(updatedBy, text(d.UpdatedBy))
	set(deleted, boolean(d.Deleted))
	set(stamp, text(d.Stamp.String()))
	// In the mask and without a value: removed. A revived row has neither.
	if d.Deleted {
		set(tombstone, text(d.Stamp.String()))
	} else {
		mask = append(mask, fieldPath(tombstone))
	}
	if d.Deleted && d.Survivor != "" {
		set(survivor, text(d.Survivor))
	} else {
		mask = append(mask, fieldPath(survivor))
	}
	return &pb.Write{
		Operation:        &pb.Write_Update{Update: &pb.Document{Name: name, Fields: fields}},
		UpdateMask:       &pb.DocumentMask{FieldPaths: mask},
		UpdateTransforms: uploadedNow(),
		CurrentDocument:  expect(w.Expect),
	}, nil
}

func uploadedNow() []*pb.DocumentTransform_FieldTransform {
	return []*pb.DocumentTransform_FieldTransform{{
		FieldPath:     uploadedOn,
		TransformType: &pb.DocumentTransform_FieldTransform_SetToServerValue{SetToServerValue: pb.DocumentTransform_FieldTransform_REQUEST_TIME},
	}}
}

func expect(updateTime int64) *pb.Precondition {
	if updateTime == 0 {
		return &pb.Precondition{ConditionType: &pb.Precondition_Exists{Exists: false}}
	}
	return &pb.Precondition{ConditionType: &pb.Precondition_UpdateTime{UpdateTime: fromMicros(updateTime)}}
}

// The fields of a Devices record, besides uploadedOn.
const (
	deviceSeq      = "seq"
	deviceTables   = "tables"
	deviceToken    = "token"
	deviceName     = "name"
	devicePlatform = "platform"
	deviceVersion  = "version"
	deviceSeen     = "seen"
	deviceFence    = "fence"
	deviceForgot   = "forgotten" // only where it is true
)

func toDevice(p *pb.Document) messages.Device {
	f := p.GetFields()
	d := messages.Device{
		ID:         lastSegment(p.GetName()),
		Seq:        f[deviceSeq].GetIntegerValue(),
		Tables:     toNumbers(f[deviceTables]),
		Token:      f[deviceToken].GetStringValue(),
		Name:       f[deviceName].GetStringValue(),
		Platform:   f[devicePlatform].GetStringValue(),
		Version:    f[deviceVersion].GetStringValue(),
		Seen:       toNumbers(f[deviceSeen]),
		Fence:      toNumbers(f[deviceFence]),
		Forgotten:  f[deviceForgot].GetBooleanValue(),
		UpdateTime: micros(p.GetUpdateTime()),
	}
	d.UploadedOn, _ = toMillis(f[uploadedOn])
	return d
}

func (r *Remote) deviceWrite(c *messages.Commit) (*pb.Write, error) {
	d := &c.Device
	if !validID(d.ID) {
		return nil, fmt.Errorf("the installation id %q is not allowed as a document id: %w", d.ID, messages.ErrRejected)
	}
	if c.Remove {
		return &pb.Write{Operation: &pb.Write_Delete{Delete: r.name(devicesCollection, d.ID)}, CurrentDocument: expect(c.Expect)}, nil
	}
	for _, s := range []string{d.Token, d.Name, d.Platform, d.Version} {
		if !utf8.ValidString(s) {
			return nil, fmt.Errorf("the record of device %s holds %q, which is not valid UTF-8: %w", d.ID, s, messages.ErrRejected)
		}
	}
	for _, m := range []map[string]int64{d.Tables, d.Seen, d.Fence} {
		for k := range m {
			if !utf8.ValidString(k) {
				return nil, fmt.Errorf("the record of device %s names %q, which is not valid UTF-8: %w", d.ID, k, messages.ErrRejected)
			}
		}
	}
	fields := map[string]*pb.Value{
		deviceSeq: integer(d.Seq), deviceTables: numbers(d.Tables), deviceToken: text(d.Token),
		deviceName: text(d.Name), devicePlatform: text(d.Platform), deviceVersion: text(d.Version),
		deviceSeen: numbers(d.Seen), deviceFence: numbers(d.Fence),
	}
	mask := make([]string, 0, len(fields))
	for name := range fields {
		mask = append(mask, fieldPath(name))
	}
	mask = append(mask, fieldPath(deviceForgot)) // in the mask and without a value: removed
	if d.Forgotten {
		fields[deviceForgot] = boolean(true)
	}
	w := &pb.Write{
		Operation:       &pb.Write_Update{Update: &pb.Document{Name: r.name(devicesCollection, d.ID), Fields: fields}},
		UpdateMask:      &pb.DocumentMask{FieldPaths: mask},
		CurrentDocument: expect(c.Expect),
	}
	if c.Announce {
		w.UpdateTransforms = uploadedNow()
	}
	return w, nil
}
