package serve

import (
	"io"
	"log/slog"
	"regexp"
	"strings"
)

// newLog writes JSON lines to w.
func newLog(w io.Writer, level slog.Level) *slog.Logger {
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level, ReplaceAttr: guard}))
}

const hidden = "[hidden]"

// secretKeys are attributes whose value is hidden whatever it is.
var secretKeys = map[string]bool{
	"token": true, "authorization": true, "password": true, "passphrase": true,
	"privatekey": true, "private_key": true, "secret": true, "bearer": true,
}

// jwt matches a compact JWS anywhere in a text: a base64url header that begins
// with {" and two more parts.
var jwt = regexp.MustCompile(`eyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]*`)

// guard is the last line before a log line leaves: the types that hold secrets
// hide themselves, and this is for the text that somebody made of one.
func guard(_ []string, a slog.Attr) slog.Attr {
	if secretKeys[strings.ToLower(a.Key)] {
		return slog.String(a.Key, hidden)
	}
	var text string
	switch v := a.Value.Resolve(); v.Kind() {
	case slog.KindString:
		text = v.String()
	case slog.KindAny:
		err, ok := v.Any().(error)
		if !ok {
			return a
		}
		text = err.Error()
	default:
		return a
	}
	if strings.Contains(text, "PRIVATE KEY-----") {
		return slog.String(a.Key, hidden)
	}
	return slog.String(a.Key, jwt.ReplaceAllString(text, hidden))
}
