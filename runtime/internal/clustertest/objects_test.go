package clustertest_test

import (
	"context"
	"net/http"
	"strconv"

	"github.com/holdfast-run/holdfast/runtime/durable"
)

const (
	tallyClass durable.Class[tally]                       = "tally"
	tallyAdd   durable.Method[tally, int64, int64]        = "add"
	tallyRead  durable.Method[tally, durable.None, int64] = "read"

	sum durable.Key[int64] = "sum"
)

var tallyDefinition = durable.Define(tallyClass, tallyAdd.Handle((*tally).add), tallyRead.Handle((*tally).read))

// A tally is a sum. It keeps a copy in memory, so that a stale instance shows.
type tally struct {
	known  bool
	cached int64
}

func (o *tally) load(tx *durable.Tx) {
	if !o.known {
		o.known, o.cached = true, sum.Get(tx)
	}
}

func (o *tally) add(_ context.Context, tx *durable.Tx, by int64) (int64, error) {
	o.load(tx)
	o.cached += by
	sum.Put(tx, o.cached)
	return o.cached, nil
}

func (o *tally) read(_ context.Context, tx *durable.Tx, _ durable.None) (int64, error) {
	o.load(tx)
	return o.cached, nil
}

// Fetch adds for POST /{n}, and reads for GET.
func (o *tally) Fetch(ctx context.Context, tx *durable.Tx, w http.ResponseWriter, r *http.Request) error {
	var n int64
	var err error
	if r.Method == http.MethodPost {
		by, perr := strconv.ParseInt(r.URL.Path[1:], 10, 64)
		if perr != nil {
			return perr
		}
		n, err = o.add(ctx, tx, by)
	} else {
		n, err = o.read(ctx, tx, durable.None{})
	}
	if err != nil {
		return err
	}
	durable.WriteJSON(w, http.StatusOK, n)
	return nil
}

const (
	shelfClass durable.Class[shelf]                       = "shelf"
	shelfPut   durable.Method[shelf, putting, books]      = "put"
	shelfSwap  durable.Method[shelf, [2]int, books]       = "swap"
	shelfRead  durable.Method[shelf, durable.None, books] = "read"
)

// books are the values of a shelf's keys, "0", "1" and "2".
type books [3]int64

type putting struct {
	Place int
	Book  int64
}

var (
	places          = [...]durable.Key[int64]{"0", "1", "2"}
	shelfDefinition = durable.Define(shelfClass, shelfPut.Handle((*shelf).put), shelfSwap.Handle((*shelf).swap), shelfRead.Handle((*shelf).read))
)

// A shelf has several keys, which change together. It keeps nothing in memory.
type shelf struct{}

func (*shelf) look(tx *durable.Tx) (b books) {
	for i, k := range places {
		b[i] = k.Get(tx)
	}
	return b
}

func (o *shelf) put(_ context.Context, tx *durable.Tx, p putting) (books, error) {
	before := o.look(tx)
	places[p.Place].Put(tx, p.Book)
	return before, nil
}

func (o *shelf) swap(_ context.Context, tx *durable.Tx, s [2]int) (books, error) {
	before := o.look(tx)
	places[s[0]].Put(tx, before[s[1]])
	places[s[1]].Put(tx, before[s[0]])
	return before, nil
}

func (o *shelf) read(_ context.Context, tx *durable.Tx, _ durable.None) (books, error) {
	return o.look(tx), nil
}
