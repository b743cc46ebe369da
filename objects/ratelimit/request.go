package ratelimit

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	minWindow = time.Millisecond
	maxWindow = 31 * 24 * time.Hour
)

// A Request is one check. Fields that are 0 have the default: a cost of 1 under a
// limit of 100 in 60 s, as GCRA counts.
type Request struct {
	Rule
	Cost int64 `json:"cost,omitempty"`
}

// orDefaults fills in from a rule what the request leaves open, and from the defaults what that
// does.
func (r Request) orDefaults(rule Rule) Request {
	r.Algorithm = cmp.Or(r.Algorithm, rule.Algorithm, GCRA)
	r.Limit = cmp.Or(r.Limit, rule.Limit, 100)
	r.Window = cmp.Or(r.Window, rule.Window, time.Minute)
	r.Cost = cmp.Or(r.Cost, 1)
	return r
}

func (r Request) valid() error {
	switch r.Algorithm {
	case GCRA, TokenBucket, SlidingWindow, FixedWindow:
	default:
		return fmt.Errorf("the algorithm is %.60q: want gcra, token-bucket, sliding-window or fixed-window", string(r.Algorithm))
	}
	switch {
	case r.Limit < 1:
		return fmt.Errorf("the limit is %d: want at least 1", r.Limit)
	case r.Window < minWindow || r.Window > maxWindow:
		return fmt.Errorf("the window is %v: want %v to %v", r.Window, minWindow, maxWindow)
	case r.Limit > math.MaxInt64/2/r.Window.Microseconds():
		return errors.New("limit times window is too large to be counted exactly")
	case r.Cost < 1:
		return fmt.Errorf("the cost is %d: want at least 1; GET counts nothing", r.Cost)
	case r.Cost > r.Limit:
		return fmt.Errorf("the cost of %d is more than the limit of %d: it would never be allowed", r.Cost, r.Limit)
	}
	return nil
}

// parse reads a query's parameters over the defaults, which a rule has, and checks the outcome. It
// is on the path of every check, so it makes no map of them.
func parse(query string, rule Rule) (Request, error) {
	r := Request{}.orDefaults(rule)
	for pair := range strings.SplitSeq(query, "&") {
		name, escaped, _ := strings.Cut(pair, "=")
		value, err := url.QueryUnescape(escaped)
		if err != nil {
			return r, fmt.Errorf("%.60s is not properly escaped", name)
		}
		switch name {
		case "limit":
			r.Limit, err = strconv.ParseInt(value, 10, 64)
		case "cost":
			r.Cost, err = strconv.ParseInt(value, 10, 64)
		case "window":
			r.Window, err = time.ParseDuration(value)
		case "algorithm":
			r.Algorithm = Algorithm(value)
		case "":
		default:
			return r, fmt.Errorf("there is no parameter %.60q: want limit, window, cost or algorithm", name)
		}
		if err != nil {
			return r, fmt.Errorf("the %s is %.60q: want a whole number, or for the window a duration such as 60s", name, value)
		}
	}
	return r, r.valid()
}
