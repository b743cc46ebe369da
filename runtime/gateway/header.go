package gateway

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/textproto"
	"net/url"
	"path"
	"strings"

	"github.com/holdfast-run/holdfast/runtime/internal/host"
)

// internalPrefix begins the headers that nodes use among themselves. From outside
// they are never believed.
const internalPrefix = "Holdfast-"

// stripHeaders removes what is between the client and this door, or claims to be ours.
// An upgrade keeps the two headers that say what it is.
func stripHeaders(h http.Header, upgrade bool) {
	for _, field := range h["Connection"] {
		for token := range strings.SplitSeq(field, ",") {
			name := textproto.CanonicalMIMEHeaderKey(textproto.TrimString(token))
			if name != "Upgrade" && name != "Connection" {
				delete(h, name)
			}
		}
	}
	for name := range h {
		switch name {
		case "Connection", "Upgrade":
			if upgrade {
				continue
			}
		case "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer", "Transfer-Encoding", "Http2-Settings":
		default:
			if !strings.HasPrefix(name, internalPrefix) {
				continue
			}
		}
		delete(h, name)
	}
}

// isUpgrade reports whether a request asks for a WebSocket.
func isUpgrade(r *http.Request) bool {
	return len(r.Header["Upgrade"]) > 0 && r.ProtoMajor == 1 &&
		hasToken(r.Header["Upgrade"], "websocket") && hasToken(r.Header["Connection"], "upgrade")
}

func hasToken(fields []string, want string) bool {
	for _, field := range fields {
		for token := range strings.SplitSeq(field, ",") {
			if strings.EqualFold(textproto.TrimString(token), want) {
				return true
			}
		}
	}
	return false
}

// checkHandshake finds what would make the handshake fail after the object has
// accepted the socket.
func checkHandshake(r *http.Request) error {
	if r.Method != http.MethodGet || !r.ProtoAtLeast(1, 1) {
		return host.Errorf(host.CodeBadRequest, "a WebSocket begins with a GET of HTTP/1.1")
	}
	if r.ContentLength != 0 {
		return host.Errorf(host.CodeBadRequest, "a WebSocket's request has no body")
	}
	if v := r.Header["Sec-Websocket-Version"]; len(v) != 1 || v[0] != "13" {
		return host.Errorf(codeUpgradeRequired, "the WebSocket version must be 13")
	}
	keys := r.Header["Sec-Websocket-Key"]
	if len(keys) == 1 {
		var key [18]byte
		text := textproto.TrimString(keys[0])
		if len(text) == 24 {
			if n, err := base64.StdEncoding.Decode(key[:], []byte(text)); err == nil && n == 16 {
				return nil
			}
		}
	}
	return host.Errorf(host.CodeBadRequest, "Sec-WebSocket-Key must be 16 bytes in base64")
}

// origins says which web pages may use this node with their visitor's means.
type origins []string

func parseOrigins(patterns []string) (origins, error) {
	o := make(origins, len(patterns))
	for i, p := range patterns {
		if _, err := path.Match(p, ""); err != nil || p == "" {
			return nil, fmt.Errorf("origin pattern %q is malformed", p)
		}
		o[i] = strings.ToLower(p)
	}
	return o, nil
}

// allow reports whether a request may come from where it says. Only browsers say so,
// and they do not lie about it.
func (o origins) allow(r *http.Request) bool {
	fields := r.Header["Origin"]
	if len(fields) == 0 {
		return true
	}
	u, err := url.Parse(fields[0])
	if err != nil || len(fields) > 1 || u.Host == "" {
		return false
	}
	if strings.EqualFold(u.Host, r.Host) {
		return true
	}
	hostname := strings.ToLower(u.Host)
	for _, pattern := range o {
		target := hostname
		if strings.Contains(pattern, "://") {
			target = strings.ToLower(u.Scheme) + "://" + hostname
		}
		if ok, _ := path.Match(pattern, target); ok {
			return true
		}
	}
	return false
}

func errForeignOrigin() error {
	return host.Errorf(codeForbidden, "pages of this origin may not do this here").Because(errors.New("foreign Origin"))
}
