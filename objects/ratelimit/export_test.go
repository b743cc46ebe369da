package ratelimit

// ParseQuery reads the parameters of a check.
func ParseQuery(query string) (Request, error) { return parse(query, Rule{}) }
