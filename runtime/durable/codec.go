package durable

import (
	"bytes"
	"encoding"
	"encoding/json"
	"strconv"
)

// encodeValue returns the stored form of a value; see [Key]. The types that objects
// store most are encoded without the help of encoding/json, to the same bytes.
func encodeValue[V any](v V) ([]byte, error) {
	switch v := any(v).(type) {
	case []byte:
		return append(make([]byte, 0, len(v)), v...), nil
	case string:
		return []byte(v), nil
	case int64:
		return strconv.AppendInt(nil, v, 10), nil
	case bool:
		return strconv.AppendBool(nil, v), nil
	}
	return encodeOther(v)
}

// encodeOther is apart so that v stays on the stack in encodeValue.
func encodeOther[V any](v V) ([]byte, error) {
	if _, ok := any(&v).(encoding.BinaryUnmarshaler); ok {
		if m, ok := any(&v).(encoding.BinaryMarshaler); ok {
			return m.MarshalBinary()
		}
	}
	return marshal(v)
}

// decodeValue reads what encodeValue wrote. The value does not share memory with b.
func decodeValue[V any](b []byte) (V, error) {
	var v V
	var err error
	switch p := any(&v).(type) {
	case *[]byte:
		*p = append(make([]byte, 0, len(b)), b...)
		return v, nil
	case *string:
		*p = string(b)
		return v, nil
	case *int64:
		*p, err = strconv.ParseInt(string(b), 10, 64)
		return v, err
	case *bool:
		*p, err = strconv.ParseBool(string(b))
		return v, err
	}
	return decodeOther[V](b)
}

func decodeOther[V any](b []byte) (V, error) {
	var v V
	if u, ok := any(&v).(encoding.BinaryUnmarshaler); ok {
		if _, ok := any(&v).(encoding.BinaryMarshaler); ok {
			return v, u.UnmarshalBinary(b)
		}
	}
	return v, json.Unmarshal(b, &v)
}

// encodeJSON returns the JSON of an argument, a reply or an attachment.
func encodeJSON[V any](v V) ([]byte, error) {
	switch v := any(v).(type) {
	case int64:
		return strconv.AppendInt(nil, v, 10), nil
	case bool:
		return strconv.AppendBool(nil, v), nil
	case None:
		return []byte("{}"), nil
	}
	return marshal(v)
}

// decodeJSON reads JSON into a V. Nothing at all is the zero V.
func decodeJSON[V any](b []byte) (V, error) {
	var v V
	if len(b) == 0 {
		return v, nil
	}
	if p, ok := any(&v).(*int64); ok {
		if n, err := strconv.ParseInt(string(b), 10, 64); err == nil {
			*p = n
			return v, nil
		}
	}
	return unmarshal[V](b)
}

func unmarshal[V any](b []byte) (v V, err error) {
	return v, json.Unmarshal(b, &v)
}

// marshal is json.Marshal that leaves <, > and & alone: nothing here ends up in HTML
// unescaped, and the console shows what was stored.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}
