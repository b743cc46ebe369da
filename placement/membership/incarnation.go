package membership

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
)

// A node's incarnation orders what is said of it: of two statements, the one about the higher
// incarnation holds. memberlist begins at 1 with each start, so that those who took the node
// for dead in a higher one go on to do so, until they hear it from the node itself. The
// file keeps where the next start begins.
const (
	// incarnationStep is how much each start adds: more than a node usually has to deny in a life.
	incarnationStep = 32
	// maxIncarnation is where it starts from the beginning: counting up to it takes a moment.
	maxIncarnation = 1 << 17
)

// nextIncarnation returns the number to begin with, and keeps it.
func nextIncarnation(path string) (int, error) {
	if path == "" {
		return 0, nil
	}
	last := 0
	text, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return 0, fmt.Errorf("read the incarnation: %w", err)
	default:
		// A file that cannot be read is as good as none: nothing is lost but a few seconds.
		last, _ = strconv.Atoi(strings.TrimSpace(string(text)))
	}
	next := last + incarnationStep
	if last < 0 || next > maxIncarnation {
		next = incarnationStep
	}
	if err := os.WriteFile(path, fmt.Appendln(nil, next), 0o600); err != nil {
		return 0, fmt.Errorf("write the incarnation: %w", err)
	}
	return next, nil
}
