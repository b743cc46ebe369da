package ratelimit

// ParseQuery reads the parameters of a check.
func ParseQuery(query string) (Request, error) {
	r := Request{}.orDefaults(Rule{})
	err := r.parse(query)
	return r, err
}
