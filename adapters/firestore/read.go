package firestore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	pb "cloud.google.com/go/firestore/apiv1/firestorepb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tidemark-sync/tidemark/messages"
)

// documentID is how queries name the id; compared with references.
const documentID = "__name__"

// lookupBatch bounds a lookup's request: ids may have 1,500 bytes each.
const lookupBatch = 500

// Devices returns the records whose uploadedOn is after since, all with a negative
// one.
func (r *Remote) Devices(ctx context.Context, since int64) (messages.DeviceList, error) {
	op := "read Devices"
	q := &pb.StructuredQuery{
		From:    []*pb.StructuredQuery_CollectionSelector{{CollectionId: devicesCollection}},
		Where:   where(uploadedOn, pb.StructuredQuery_FieldFilter_GREATER_THAN, timestamp(time.UnixMilli(since))),
		OrderBy: []*pb.StructuredQuery_Order{ascending(uploadedOn)},
	}
	if since < 0 {
		q.Where, q.OrderBy = nil, nil
	}
	list := messages.DeviceList{Reads: 1}
	n, readTime, err := r.query(ctx, op, q, 0, func(p *pb.Document) error {
		list.Devices = append(list.Devices, toDevice(p))
		return nil
	})
	list.Reads = max(n, 1)
	if err != nil {
		return messages.DeviceList{}, err
	}
	if readTime == 0 {
		return messages.DeviceList{}, fmt.Errorf("firestore: %s: the answer has no read time: %w", op, messages.ErrUnavailable)
	}
	list.ReadTime = readTime
	return list, nil
}

// Device returns one record as it is now.
func (r *Remote) Device(ctx context.Context, id string) (messages.Device, error) {
	op := "read device " + id
	if !validID(id) {
		return messages.Device{}, fmt.Errorf("firestore: %s: not allowed as a document id: %w", op, messages.ErrRejected)
	}
	d := messages.Device{ID: id}
	_, err := r.lookup(ctx, op, []string{r.name(devicesCollection, id)}, nil, func(p *pb.Document) { d = toDevice(p) })
	return d, err
}

// Read streams the documents of a query: it is one request, however many there
// are. When the server ends it early the documents so far have been yielded, and
// a new Read after the last of them goes on.
func (r *Remote) Read(ctx context.Context, q messages.Query, yield func(messages.Document) error) (int64, error) {
	op := fmt.Sprintf("read table %q", q.Table)
	collection := collectionID(q.Table)
	sq := &pb.StructuredQuery{From: []*pb.StructuredQuery_CollectionSelector{{CollectionId: collection}}}
	if q.Limit > 0 {
		sq.Limit = wrapperspb.Int32(int32(min(q.Limit, 1<<31-1)))
	}
	after := func(values ...*pb.Value) *pb.Cursor { return &pb.Cursor{Values: values} }
	id := func() *pb.Value {
		return &pb.Value{ValueType: &pb.Value_ReferenceValue{ReferenceValue: r.name(collection, q.After.ID)}}
	}
	if q.Device == "" {
		sq.OrderBy = []*pb.StructuredQuery_Order{ascending(documentID)}
		if q.After.ID != "" {
			sq.StartAt = after(id())
		}
	} else {
		op += " of device " + q.Device
		field, till := stamp, messages.MaxSeq
		if q.Tombstones {
			field, till = tombstone, min(max(q.Till, 0), messages.MaxSeq)
			// What is to be purged need not travel.
			sq.Select = &pb.StructuredQuery_Projection{Fields: []*pb.StructuredQuery_FieldReference{{FieldPath: stamp}, {FieldPath: deleted}}}
		}
		from := text(messages.Stamp{Device: q.Device, Seq: q.After.Stamp.Seq}.String())
		to := text(messages.Stamp{Device: q.Device, Seq: till}.String())
		lower := pb.StructuredQuery_FieldFilter_GREATER_THAN
		if q.After.ID != "" {
			lower = pb.StructuredQuery_FieldFilter_GREATER_THAN_OR_EQUAL
			sq.StartAt = after(from, id())
		}
		sq.Where = &pb.StructuredQuery_Filter{FilterType: &pb.StructuredQuery_Filter_CompositeFilter{CompositeFilter: &pb.StructuredQuery_CompositeFilter{
			Op:      pb.StructuredQuery_CompositeFilter_AND,
			Filters: []*pb.StructuredQuery_Filter{where(field, lower, from), where(field, pb.StructuredQuery_FieldFilter_LESS_THAN_OR_EQUAL, to)},
		}}}
		sq.OrderBy = []*pb.StructuredQuery_Order{ascending(field), ascending(documentID)}
	}
	n, _, err := r.query(ctx, op, sq, q.ReadTime, func(p *pb.Document) error {
		d := toDocument(q.Table, p)
		if q.Device != "" && d.Stamp.Device != q.Device {
			return nil // an id that starts with the other one and a dot is in its range
		}
		return yield(d)
	})
	return n, err
}

// query runs a query at a read time (Unix µs, 0 is now), and returns what was
// billed and the read time at which the answer holds. Nothing is billed for a
// query that the server did not answer.
func (r *Remote) query(ctx context.Context, op string, q *pb.StructuredQuery, at int64, yield func(*pb.Document) error) (reads, readTime int64, err error) {
	req := &pb.RunQueryRequest{Parent: r.parent, QueryType: &pb.RunQueryRequest_StructuredQuery{StructuredQuery: q}}
	if at != 0 {
		req.ConsistencySelector = &pb.RunQueryRequest_ReadTime{ReadTime: fromMicros(at)}
	}
	call, patience, done := newPatience(ctx, r.timeout)
	defer done()
	next := answers(call, r, func(ctx context.Context) (interface {
		Recv() (*pb.RunQueryResponse, error)
	}, error,
	) {
		return r.client.RunQuery(ctx, req)
	})
	answered := false
	for {
		patience.wait()
		resp, err := next()
		patience.rest()
		if errors.Is(err, io.EOF) {
			return max(reads, 1), readTime, nil
		}
		if err != nil {
			if answered {
				reads = max(reads, 1)
			}
			if answered && r.user.expired(err) {
				return reads, 0, fmt.Errorf("firestore: %s: the user's token expired meanwhile: %w", op, messages.ErrUnavailable)
			}
			return reads, 0, r.readError(ctx, call, op, at, err)
		}
		answered = true
		// It may rise from answer to answer; what came before then still holds.
		if t := micros(resp.GetReadTime()); t != 0 {
			readTime = t
		}
		if resp.GetDocument() == nil {
			continue // progress, or the read time of an empty answer
		}
		reads++
		if err := yield(resp.GetDocument()); err != nil {
			return reads, readTime, err
		}
	}
}

// Documents looks documents up by id. An id that no document can have is missing
// from the answer like one that does not exist.
func (r *Remote) Documents(ctx context.Context, table string, ids []string, readTime int64) (messages.Page, error) {
	op := fmt.Sprintf("look up %d documents of table %q", len(ids), table)
	collection := collectionID(table)
	names := make([]string, 0, len(ids))
	for _, id := range ids {
		if validID(id) {
			names = append(names, r.name(collection, id))
		}
	}
	var page messages.Page
	var at *timestamppb.Timestamp
	if readTime != 0 {
		at = fromMicros(readTime)
	}
	for len(names) > 0 {
		n := min(len(names), lookupBatch)
		var err error
		// All batches read at the time of the first.
		at, err = r.lookup(ctx, op, names[:n], at, func(p *pb.Document) {
			page.Documents = append(page.Documents, toDocument(table, p))
		})
		page.Reads += int64(n)
		if err != nil {
			return messages.Page{Reads: page.Reads}, err
		}
		names = names[n:]
	}
	return page, nil
}

func (r *Remote) lookup(ctx context.Context, op string, names []string, at *timestamppb.Timestamp, found func(*pb.Document)) (*timestamppb.Timestamp, error) {
	req := &pb.BatchGetDocumentsRequest{Database: r.database, Documents: names}
	if at != nil {
		req.ConsistencySelector = &pb.BatchGetDocumentsRequest_ReadTime{ReadTime: at}
	}
	call, patience, done := newPatience(ctx, r.timeout)
	defer done()
	next := answers(call, r, func(ctx context.Context) (interface {
		Recv() (*pb.BatchGetDocumentsResponse, error)
	}, error,
	) {
		return r.client.BatchGetDocuments(ctx, req)
	})
	readTime := at
	for {
		patience.wait()
		resp, err := next()
		patience.rest()
		if errors.Is(err, io.EOF) {
			return readTime, nil
		}
		if err != nil {
			return at, r.readError(ctx, call, op, micros(at), err)
		}
		if at == nil && resp.GetReadTime() != nil {
			readTime = resp.GetReadTime()
		}
		if p := resp.GetFound(); p != nil {
			found(p)
		}
	}
}

func where(field string, op pb.StructuredQuery_FieldFilter_Operator, v *pb.Value) *pb.StructuredQuery_Filter {
	return &pb.StructuredQuery_Filter{FilterType: &pb.StructuredQuery_Filter_FieldFilter{FieldFilter: &pb.StructuredQuery_FieldFilter{
		Field: &pb.StructuredQuery_FieldReference{FieldPath: field}, Op: op, Value: v,
	}}}
}

func ascending(field string) *pb.StructuredQuery_Order {
	return &pb.StructuredQuery_Order{Field: &pb.StructuredQuery_FieldReference{FieldPath: field}, Direction: pb.StructuredQuery_ASCENDING}
}
