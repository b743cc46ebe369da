package host_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/holdfast-run/holdfast/placement"
	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

func TestErrorsKeepTheirIdentity(t *testing.T) {
	t.Parallel()
	const tooMuch host.Refusal = "limiter: too much"
	for _, e := range []*host.Error{
		{Code: host.CodeOverloaded, Message: "slow down\nplease: ü", Overloaded: true, RetryAfter: time.Second},
		host.AsError(tooMuch),
		{Code: host.CodeUnavailable, Retryable: true, Reset: true},
	} {
		text, err := host.MarshalError(e)
		if err != nil {
			t.Fatal(err)
		}
		got, err := host.UnmarshalError(text)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(e, got, cmpopts.IgnoreUnexported(host.Error{})); diff != "" {
			t.Error(diff)
		}
		if e.Refusal != "" && !errors.Is(got, tooMuch) {
			t.Errorf("the refusal is not itself any more: %v", got)
		}
	}
}

func FuzzUnmarshalError(f *testing.F) {
	f.Add([]byte("e30="))
	f.Fuzz(func(t *testing.T, text []byte) {
		if e, err := host.UnmarshalError(text); err == nil && e.Code == "" {
			t.Error("an error without a code")
		}
	})
}

func TestMergePages(t *testing.T) {
	t.Parallel()
	info := func(name string) host.ObjectInfo {
		return host.ObjectInfo{Ref: host.Ref{Class: "c", ID: placement.NamedID("c", name), Name: name, Named: true}}
	}
	a := host.ListPage{Objects: []host.ObjectInfo{info("a"), info("d")}}
	b := host.ListPage{Objects: []host.ObjectInfo{info("b"), info("c")}, Cursor: "more"}
	page := host.MergePages(3, a, b)
	if len(page.Objects) != 3 || page.Objects[2].Name != "c" {
		t.Errorf("the page is %+v", page.Objects)
	}
	name, id, err := host.DecodeCursor(page.Cursor)
	if err != nil || name != "c" || id != info("c").ID {
		t.Errorf("the cursor stands for %q %s, error %v", name, id, err)
	}
	if page := host.MergePages(10, a); page.Cursor != "" {
		t.Error("a last page has a cursor")
	}
	for _, s := range []string{"!", "AAAA"} {
		if _, _, err := host.DecodeCursor(s); err == nil {
			t.Errorf("the cursor %q was taken", s)
		}
	}
}
