package policy

import (
	"fmt"
	"regexp"
	"strings"
)

const (
	maxGlobs = 256 // in one policy
	maxGlob  = 512 // bytes
)

var globPattern = regexp.MustCompile(`^[a-zA-Z0-9_:/*.-]+$`)

// glob is one pattern of image names: * stands for anything but a slash, ** for
// anything.
type glob struct {
	text    string
	pattern *regexp.Regexp // nil: every image
}

// everything is what a policy names of which it cannot be read what it names.
var everything = glob{text: "**"}

func compileGlob(text string) (glob, error) {
	if text == "" {
		return glob{}, fmt.Errorf("the glob is missing")
	}
	if len(text) > maxGlob {
		return glob{}, fmt.Errorf("the glob has %d bytes, at most %d are allowed", len(text), maxGlob)
	}
	if !globPattern.MatchString(text) {
		return glob{}, fmt.Errorf("%s is no glob: letters, digits and _ : / * . - are known", show(text))
	}
	g := glob{text: text}
	// As in the policy controller, these two mean Docker Hub.
	switch text {
	case "*":
		text = hub + "/library/*"
	case "*/*":
		text = hub + "/*/*"
	}
	var b strings.Builder
	b.WriteString(`^`)
	for rest := text; rest != ""; {
		switch {
		case strings.HasPrefix(rest, "**"):
			b.WriteString(`.*`)
			rest = rest[2:]
		case rest[0] == '*':
			b.WriteString(`[^/]*`)
			rest = rest[1:]
		default:
			n := strings.IndexByte(rest, '*')
			if n < 0 {
				n = len(rest)
			}
			b.WriteString(regexp.QuoteMeta(rest[:n]))
			rest = rest[n:]
		}
	}
	b.WriteString(`$`)
	pattern, err := regexp.Compile(b.String())
	if err != nil {
		return glob{}, fmt.Errorf("%q is no glob: %w", text, err)
	}
	g.pattern = pattern
	return g, nil
}

func (g glob) match(i Image) bool {
	if g.pattern == nil {
		return true
	}
	for _, name := range i.names {
		if g.pattern.MatchString(name) {
			return true
		}
	}
	return false
}

// doubt is what a reader of a glob should know, and its writer may not.
type doubt struct{ text, mend string }

// doubts says what is odd about a glob that compiles.
func doubts(text string) []doubt {
	var found []doubt
	host, path, slash := strings.Cut(text, "/")
	repository, _, _ := strings.Cut(path, ":")
	switch {
	case strings.Contains(text, "//"):
		found = append(found, doubt{"it can never match: no image's name has //", "write HOST/PATH, without a scheme"})
	case strings.HasPrefix(text, "/") || strings.HasSuffix(text, "/"):
		found = append(found, doubt{"it can never match: no image's name begins or ends with a slash", "write HOST/PATH/** for all below a path"})
	case slash && strings.ToLower(repository) != repository:
		found = append(found, doubt{"it can never match: the path in a registry has no upper case", "write it in lower case"})
	case slash && strings.ToLower(host) != host:
		found = append(found, doubt{"hosts are compared in lower case: it matches only pods that spell it so", "write it in lower case"})
	case slash && isAlias(host):
		found = append(found, doubt{"it can match only pods that spell the host so: Docker Hub's normalised name is " + hub, "write " + hub + "/" + path})
	case host == hub && !strings.ContainsAny(path, "/*"):
		found = append(found, doubt{"it can match only pods that spell the name so: Docker Hub's own images are below library/", "write " + hub + "/library/" + path})
	case text == "*" || text == "*/*":
		found = append(found, doubt{"it means Docker Hub only", "write ** for every image, or " + hub + "/… to be plain"})
	case !strings.Contains(path, ":") && !strings.Contains(text[strings.LastIndexByte(text, '/')+1:], "*"):
		found = append(found, doubt{"it matches only pods that name the image with neither tag nor digest", "write " + text + ":* and " + text + "@…, or " + text + "* for both"})
	}
	// Hosts that begin like the one that is meant belong to somebody else.
	if n := strings.IndexByte(host, '*'); n > 0 && strings.Contains(host[:n], ".") {
		found = append(found, doubt{"the star stands inside the host: it matches hosts of other people, such as " + host[:n] + ".example.net", "write " + strings.TrimRight(host[:n], ".") + "/**"})
	}
	return found
}

func isAlias(host string) bool {
	for _, alias := range hubAliases {
		if host == alias {
			return true
		}
	}
	return false
}
