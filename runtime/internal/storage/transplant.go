package storage

import (
	"errors"
	"fmt"
	"io"
)

// Transplant makes the file at path out of the snapshot of a machine of another group: all rows
// but what is noted about sockets, which are connections to other nodes, the members given
// instead of its own, as of the snapshot's entry, and the same index, term and digest. The
// file is whole and durable, or not there.
func Transplant(r io.Reader, path string, members []byte, o Options) (index, term uint64, err error) {
	o = o.withDefaults()
	temp := path + ".restore"
	f, st, err := receive(r, temp, o)
	if err == nil {
		st.confIndex, st.conf = st.index, members
		err = f.dropSpace(SpaceSocket)
		if err == nil {
			err = f.update(func(w *writer) error { return w.finish(&st) })
		}
		err = errors.Join(err, f.close())
	}
	if err == nil {
		err = install(temp, path)
	}
	if err != nil {
		return 0, 0, fmt.Errorf("restore %s: %w", path, errors.Join(err, remove(temp)))
	}
	return st.index, st.term, nil
}

// dropSpace deletes all rows of a space from a file that has been checked.
func (f *file) dropSpace(space Space) error {
	from := ""
	for {
		keys, err := f.keysOf(space, from)
		if err != nil || len(keys) == 0 {
			return err
		}
		err = f.update(func(w *writer) error {
			for _, key := range keys {
				if err := w.setRow(key, nil); err != nil {
					return err
				}
			}
			return w.finish(nil)
		})
		if err != nil {
			return err
		}
		from = keys[len(keys)-1]
	}
}

// keysOf returns as many rows of a space as one transaction may delete.
func (f *file) keysOf(space Space, from string) (keys []string, err error) {
	err = f.view(func(r *reader) error {
		c := r.cursor(rowsBucket, false)
		err := c.seek(from)
		for ; err == nil && c.ok && len(keys) < f.txOperations; err = c.next() {
			if rowSpace(c.key) == space {
				keys = append(keys, c.key)
			}
		}
		return err
	})
	return keys, err
}
