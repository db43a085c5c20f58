package kube

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hallmark-ca/hallmark/attest"
)

// knownWriters are controllers that write these objects and write them again at
// once: istiod, istio-csr, trust-manager.
var knownWriters = []string{"pilot-discovery", "cert-manager-istio-csr", "trust-manager"}

// handPrefix begins the names of managers behind which a person sits.
const handPrefix = "kubectl"

// wanted is what every object is to hold.
type wanted struct {
	trustDomain string
	sequence    uint64
	content     string
	sum         checksum
}

// move is what is to be done about an object.
type move uint8

const (
	keep  move = iota // nothing: it is right, or it is not for us to change
	apply             // write, and lose to whoever else holds the content
	force             // write, and take the content from whoever holds it
)

// verdict is a move and why.
type verdict struct {
	move    move
	problem string // why the object will not hold what is wanted; "": it will
	from    string // who is overruled, of a force that may be met by another write
}

// decide says what is to be done about o, nil where there is none. It is a pure
// function; that an overruled writer comes back is [contest]'s.
func decide(o *object, w *wanted, takeOver []string) verdict {
	switch {
	case o == nil:
		return verdict{move: apply}
	case o.terminating:
		return verdict{problem: "it is being deleted"}
	case o.marked && o.markedFor != w.trustDomain:
		return verdict{problem: fmt.Sprintf("it holds the bundle of trust domain %s: give one of the two another name, or delete it", attest.Escape(o.markedFor))}
	case o.ours && o.sequence > w.sequence:
		return verdict{problem: fmt.Sprintf("it holds sequence %d, newer than ours (%d): this replica is behind", o.sequence, w.sequence)}
	case o.has && o.sum == w.sum:
		if len(o.writers) == 0 && (!o.marked || o.sequence != w.sequence) {
			return verdict{move: force} // the marks alone: nobody else holds the content
		}
		return verdict{}
	case o.immutable:
		return verdict{problem: "it is immutable: delete it"}
	case o.ours:
		return decideOurs(o, takeOver)
	}
	return decideOthers(o, takeOver)
}

// decideOurs is about an object of ours whose content is not what is wanted.
func decideOurs(o *object, takeOver []string) verdict {
	if len(o.writers) == 0 {
		return verdict{move: force} // our own older bundle, or none; a hand may hold the marks
	}
	for _, w := range o.writers {
		if slices.Contains(knownWriters, w) && !slices.Contains(takeOver, w) {
			return verdict{problem: heldBy(w)}
		}
	}
	v := verdict{move: force}
	if i := slices.IndexFunc(o.writers, func(w string) bool { return !isHand(w) }); i >= 0 {
		v.from = o.writers[i]
	}
	return v
}

// decideOthers is about an object that was never ours.
func decideOthers(o *object, takeOver []string) verdict {
	if len(o.writers) == 0 {
		if !o.has {
			return verdict{move: apply} // somebody's object, and not this content
		}
		return verdict{problem: "its content is held by nobody that the API server knows: delete it"}
	}
	for _, w := range o.writers {
		if !slices.Contains(takeOver, w) {
			return verdict{problem: heldBy(w)}
		}
	}
	return verdict{move: force, from: o.writers[0]}
}

func isHand(name string) bool { return strings.HasPrefix(name, handPrefix) }

func heldBy(name string) string {
	return fmt.Sprintf("another writer holds it: %q: switch that off and name it in takeOver, or delete the object", attest.Escape(name))
}

// Limits of a contest.
const (
	contestTries  = 3
	contestWithin = 10 * time.Minute
	contestLast   = 2 * time.Hour
)

// contest is how often a writer was overruled on one object. The zero contest is
// none.
type contest struct {
	writer string
	tries  int
	began  time.Time
	until  time.Time // before that it is not tried again
	quiet  time.Duration
}

// overrule says whether writer may be overruled at now: 0, or after what time to
// look again. It returns the contest as it then stands.
func (c contest) overrule(writer string, now time.Time) (contest, time.Duration) {
	if c.writer != writer {
		c = contest{writer: writer}
	}
	if now.Before(c.until) {
		return c, c.until.Sub(now)
	}
	if c.tries == 0 || now.Sub(c.began) > contestWithin {
		if now.Sub(c.began) > 2*contestLast {
			c.quiet = 0
		}
		c.tries, c.began = 0, now
	}
	if c.tries < contestTries {
		c.tries++
		return c, 0
	}
	c.quiet = min(max(contestWithin, 2*c.quiet), contestLast)
	c.tries, c.until = 0, now.Add(c.quiet)
	return c, c.quiet
}
