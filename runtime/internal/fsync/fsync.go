// Package fsync changes files so that a crash leaves either the old or the new one.
package fsync

import (
	"errors"
	"os"
	"path/filepath"
)

// Replace replaces a file, or makes it. When it has returned nil the content is on disk, and
// what a crash leaves is never a part of it. The new content passes through path + [Next].
func Replace(path string, content []byte) error {
	f, err := os.OpenFile(path+Next, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+Next, path); err != nil {
		return err
	}
	return Dir(filepath.Dir(path))
}

// Next is the ending of a file that a crash kept from replacing another.
const Next = ".new"

// Dir makes durable which files a directory has.
func Dir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
