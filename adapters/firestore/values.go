package firestore

import (
	"math"
	"time"
	"unicode/utf8"

	pb "cloud.google.com/go/firestore/apiv1/firestorepb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/tidemark-sync/tidemark/messages"
)

// decode returns the Go value that a column gets, messages.Unsupported for types
// that SQLite does not have.
func decode(v *pb.Value) any {
	switch v := v.GetValueType().(type) {
	case *pb.Value_NullValue:
		return nil
	case *pb.Value_IntegerValue:
		return v.IntegerValue
	case *pb.Value_DoubleValue:
		return v.DoubleValue
	case *pb.Value_StringValue:
		return v.StringValue
	case *pb.Value_BytesValue:
		if v.BytesValue == nil {
			return []byte{} // an empty BLOB is not NULL
		}
		return v.BytesValue
	case *pb.Value_BooleanValue:
		return v.BooleanValue
	case *pb.Value_TimestampValue:
		return messages.Unsupported{Type: "timestamp"}
	case *pb.Value_MapValue:
		return messages.Unsupported{Type: "map"}
	case *pb.Value_ArrayValue:
		return messages.Unsupported{Type: "array"}
	case *pb.Value_ReferenceValue:
		return messages.Unsupported{Type: "reference"}
	case *pb.Value_GeoPointValue:
		return messages.Unsupported{Type: "geopoint"}
	default:
		return messages.Unsupported{Type: "unknown"}
	}
}

// encode reverses decode; ok is false for what a document cannot hold.
func encode(v any) (value *pb.Value, ok bool) {
	switch v := v.(type) {
	case nil:
		return &pb.Value{ValueType: &pb.Value_NullValue{}}, true
	case int64:
		return integer(v), true
	case float64:
		return &pb.Value{ValueType: &pb.Value_DoubleValue{DoubleValue: v}}, true
	case string:
		return text(v), utf8.ValidString(v)
	case []byte:
		return &pb.Value{ValueType: &pb.Value_BytesValue{BytesValue: v}}, true
	case bool:
		return boolean(v), true
	default:
		return nil, false
	}
}

func integer(n int64) *pb.Value {
	return &pb.Value{ValueType: &pb.Value_IntegerValue{IntegerValue: n}}
}

func text(s string) *pb.Value {
	return &pb.Value{ValueType: &pb.Value_StringValue{StringValue: s}}
}

func boolean(b bool) *pb.Value {
	return &pb.Value{ValueType: &pb.Value_BooleanValue{BooleanValue: b}}
}

func timestamp(t time.Time) *pb.Value {
	return &pb.Value{ValueType: &pb.Value_TimestampValue{TimestampValue: timestamppb.New(t)}}
}

func numbers(m map[string]int64) *pb.Value {
	fields := make(map[string]*pb.Value, len(m))
	for k, n := range m {
		fields[fieldName(k)] = integer(n)
	}
	return &pb.Value{ValueType: &pb.Value_MapValue{MapValue: &pb.MapValue{Fields: fields}}}
}

// toNumbers reverses numbers; what is no number is left out.
func toNumbers(v *pb.Value) map[string]int64 {
	fields := v.GetMapValue().GetFields()
	m := make(map[string]int64, len(fields))
	for k, n := range fields {
		name, ok := columnName(k)
		if n, isInt := n.GetValueType().(*pb.Value_IntegerValue); ok && isInt {
			m[name] = n.IntegerValue
		}
	}
	return m
}

// toMillis reads a time as somebody may have written it: in milliseconds, also as
// JavaScript's only kind of number, or as a timestamp.
func toMillis(v *pb.Value) (ms int64, ok bool) {
	switch v := v.GetValueType().(type) {
	case *pb.Value_IntegerValue:
		return v.IntegerValue, true
	case *pb.Value_DoubleValue:
		if d := v.DoubleValue; d == math.Trunc(d) && math.Abs(d) < 1<<53 {
			return int64(d), true
		}
	case *pb.Value_TimestampValue:
		return v.TimestampValue.AsTime().UnixMilli(), true
	}
	return 0, false
}

// micros is an update time or read time as messages have it; 0 when it is absent.
func micros(t *timestamppb.Timestamp) int64 {
	if t == nil {
		return 0
	}
	return t.AsTime().UnixMicro()
}

func fromMicros(us int64) *timestamppb.Timestamp { return timestamppb.New(time.UnixMicro(us)) }
