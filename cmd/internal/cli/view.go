package cli

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/hallmark-ca/hallmark/ca/journal"
	"github.com/hallmark-ca/hallmark/ca/rotate"
	"github.com/hallmark-ca/hallmark/cmd/internal/admin"
)

// barWidth is that of a gate's bar, in characters.
const barWidth = 24

// alertAt is the part of a root's life, in percent, from which on its age is
// wrong: half of it is when the next one is due.
const alertAt = 75

// phases says what each phase means.
var phases = map[string]string{
	rotate.Idle:      "no rotation is under way",
	rotate.Prepared:  "the new root exists, and is trusted by nobody yet",
	rotate.Published: "the new root is in the bundle, and signs nothing yet",
	rotate.Draining:  "the new root signs; an old one is trusted until nobody needs it",
}

// courses says how it goes on.
var courses = map[journal.Course]string{
	journal.Manual: "by a person's commands",
	journal.Run:    "by itself through all phases, waiting at the gates",
	journal.Paused: "not at all: it is paused",
}

// view writes lines with a label before each.
type view struct {
	w   io.Writer
	now time.Time
}

func (v view) line(label, format string, args ...any) {
	fmt.Fprintf(v.w, "%-13s %s\n", printable(label), printable(fmt.Sprintf(format, args...)))
}

// since and until say a moment, and how far it is.
func (v view) since(t time.Time) string { return fmt.Sprintf("%s (%s ago)", at(t), span(v.now.Sub(t))) }

func (v view) until(t time.Time) string {
	if !t.After(v.now) {
		return fmt.Sprintf("%s (over)", at(t))
	}
	return fmt.Sprintf("%s (in %s)", at(t), span(t.Sub(v.now)))
}

// at says a moment in UTC: server and reader may be in different zones.
func at(t time.Time) string { return t.UTC().Format("2006-01-02 15:04Z") }

// span says a duration by its largest units.
func span(d time.Duration) string {
	two := func(large int, one string, small int, other string) string {
		if small == 0 {
			return fmt.Sprintf("%d%s", large, one)
		}
		return fmt.Sprintf("%d%s%d%s", large, one, small, other)
	}
	d = max(d, 0)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 24*time.Hour:
		return two(int(d.Hours()), "h", int(d.Minutes())%60, "m")
	}
	return two(int(d.Hours())/24, "d", int(d.Hours())%24, "h")
}

func shortID(id string) string { return id[:min(len(id), 8)] }

// trouble is one thing that is wrong, and what mends it.
type trouble struct{ what, mend string }

// troubles lists what is wrong with the rotation.
func troubles(s *admin.RotationStatus) []trouble {
	var all []trouble
	if s.Error != "" {
		all = append(all, trouble{s.Error, "see that the storage of the state directory works; issuance goes on"})
	}
	if f := s.Frozen; f != nil {
		all = append(all, trouble{
			fmt.Sprintf("whether the journal holds the last step (%s, at %s) is not known: %s", f.Step, at(f.At), f.Error),
			"nothing moves, and issuance goes on, until the journal can be read; see that its storage works",
		})
	}
	// While it is frozen, every failure says no more than that.
	if f := s.Failure; f != nil && s.Frozen == nil {
		all = append(all, trouble{fmt.Sprintf("the last step failed at %s: %s", at(f.At), f.Error), "what is due by itself is tried again; the server's log has more"})
	}
	if s.Wait.For == rotate.ForClock || s.Wait.For == rotate.ForJournal {
		all = append(all, trouble{s.Wait.Reason, s.Wait.Mend})
	}
	for _, r := range s.Roots {
		if r.Alert >= alertAt && r.Phase == journal.Active {
			all = append(all, trouble{fmt.Sprintf("root %s signs, and %.0f %% of its life are over: everything ends with it", shortID(r.ID), 100*r.LifeUsed), "hallmark rotate run"})
		}
	}
	return all
}

// writeRotation writes how the rotation stands, with at most names of those
// behind each gate.
func writeRotation(w io.Writer, s *admin.RotationStatus, names int) error {
	v := view{w, s.At}
	for _, t := range troubles(s) {
		v.line("WRONG", "%s", t.what)
		if t.mend != "" {
			v.line("  mend", "%s", t.mend)
		}
	}
	if s.Phase == "" { // nothing more is known
		return nil
	}
	v.line("phase", "%s: %s", s.Phase, cmp.Or(phases[s.Phase], "(this release does not know it)"))
	course := cmp.Or(courses[s.Course], string(s.Course))
	if s.Course == journal.Manual && s.Automatic == rotate.RunAlone {
		course = "by itself when it is due, waiting at the gates"
	}
	v.line("goes on", "%s (rotation.automatic: %s)", course, s.Automatic)
	v.next(s)
	v.line("bundle", "sequence %d, journal record %d", s.Sequence, s.Record)
	fmt.Fprintln(w)
	if err := v.roots(s.Roots); err != nil {
		return err
	}
	for i := range s.Gates {
		fmt.Fprintln(w)
		if err := v.gate(&s.Gates[i], names); err != nil {
			return err
		}
	}
	return nil
}

// next says what happens next. Why a gate is shut stands at the gate.
func (v view) next(s *admin.RotationStatus) {
	if s.Next.Act != "" {
		v.line("next", "%s, at once", step(s.Next.Act, s.Next.Root))
		return
	}
	w := s.Wait
	text, when := w.Reason, ""
	if !w.Until.IsZero() {
		when = "at the earliest " + v.until(w.Until)
	}
	switch w.For {
	case "":
		return
	case rotate.ForGateA:
		text = step(w.Next, w.Root) + ", when gate A is open"
	case rotate.ForGateB:
		text = step(w.Next, w.Root) + ", when gate B is open and the rehearsal held"
	case rotate.ForRehearsal:
		text = step(w.Next, w.Root) + ", when the rehearsal has passed"
	case rotate.ForNothing:
		when = strings.TrimPrefix(when, "at the earliest ")
	case rotate.ForClock, rotate.ForJournal:
		return // it is wrong, and said
	}
	if when != "" {
		text += "; " + when
	}
	v.line("next", "%s", text)
	if w.For == rotate.ForPerson || w.For == rotate.ForWindow {
		v.line("  do", "%s", w.Mend)
	}
}

func step(act rotate.Act, root string) string {
	if root == "" {
		return string(act)
	}
	return fmt.Sprintf("%s root %s", act, shortID(root))
}

func (v view) roots(roots []rotate.RootStatus) error {
	table := tabwriter.NewWriter(v.w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "ROOT\tPHASE\tSINCE\tLIFE USED\tENDS\tLEAVES UNDER IT")
	for _, r := range roots {
		used := fmt.Sprintf("%.0f %%", 100*r.LifeUsed)
		if r.Alert > 0 {
			used += fmt.Sprintf(" (past %d)", r.Alert)
		}
		leaves := "none"
		switch {
		case r.Leaves > 0:
			leaves = fmt.Sprintf("%d, the last until %s", r.Leaves, at(r.LeavesUntil))
		case r.Phase == journal.Trusted:
			leaves = "not known here: it is only trusted"
		case r.Destroyed != nil:
			leaves = "none; its key was destroyed " + at(*r.Destroyed)
		case !r.KeyUntil.IsZero():
			leaves = "none; its key is kept until " + at(r.KeyUntil)
		}
		fmt.Fprintln(table, printable(shortID(r.ID))+"\t"+printable(string(r.Phase))+"\t"+at(r.Since)+"\t"+used+"\t"+at(r.NotAfter)+"\t"+leaves)
	}
	return table.Flush()
}

func (v view) gate(g *rotate.Gate, names int) error {
	label := "gate " + g.Name
	if g.Name == "trust" {
		label = "trust"
	}
	state := "shut"
	if g.Open {
		state = "OPEN"
	}
	root := shortID(g.Root)
	switch {
	case g.Name == "B" && g.Leaves > 0:
		v.line(label, "%s: %d leaves under root %s are left", state, g.Leaves, root)
	case g.Name == "B":
		v.line(label, "%s %s: %d of %d came back in the rehearsal for root %s", bar(g.Confirmed, g.Consumers, g.Open), state, g.Confirmed, g.Consumers, root)
	default:
		v.line(label, "%s %s: %d of %d hold root %s", bar(g.Confirmed, g.Consumers, g.Open), state, g.Confirmed, g.Consumers, root)
	}
	if g.Why != "" {
		v.line("  why", "%s", strings.TrimPrefix(g.Why, label+" is shut: "))
	}
	if !g.Earliest.IsZero() {
		v.line("  earliest", "%s", v.until(g.Earliest))
	}
	if !g.Latest.IsZero() {
		v.line("  latest", "%s, if nobody who is behind is heard of again", v.until(g.Latest))
	}
	if g.Mend != "" {
		v.line("  mend", "%s", g.Mend)
	}
	if err := v.behind("behind", g.Behind, g.BehindCount, names); err != nil {
		return err
	}
	return v.behind("set aside", g.Aside, g.AsideCount, names)
}

// bar shows how many are through. It is full when the gate is open, and not
// before; it is empty only while nobody is.
func bar(n, of int, open bool) string {
	full := 0
	switch {
	case open:
		full = barWidth
	case n > 0 && of > 0:
		full = min(max(barWidth*n/of, 1), barWidth-1)
	}
	return "[" + strings.Repeat("#", full) + strings.Repeat(".", barWidth-full) + "]"
}

// behind writes a table of who holds a gate up.
func (v view) behind(what string, list []rotate.Consumer, count, names int) error {
	if count == 0 {
		return nil
	}
	list = list[:min(len(list), names)]
	v.line("  "+what, "%d", count)
	if len(list) == 0 {
		return nil
	}
	table := tabwriter.NewWriter(v.w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "    CONSUMER\tNODE\tDOOR\tLAST SEEN\tHOLDS BUNDLE\tLAST CERTIFICATE ENDS")
	for _, c := range list {
		// A place of the bundle has a name alone, and readers who do not tell us.
		name, node, door, seen, holds, until := c.Door, cmp.Or(c.Node, "-"), "-", "-", "-", "-"
		if c.Pod != "" {
			name, door = c.Namespace+"/"+c.Pod, c.Door
			seen, holds = "not since the start", "not known"
		}
		if !c.Seen.IsZero() {
			seen = span(v.now.Sub(c.Seen)) + " ago"
		}
		if c.Confirmed > 0 {
			holds = fmt.Sprint(c.Confirmed)
		}
		switch {
		case c.Pod != "" && !c.Until.IsZero():
			until = v.until(c.Until)
		case !c.Until.IsZero():
			until = "held by all from " + v.until(c.Until)
		case c.Why != "":
			until = c.Why
		}
		fmt.Fprintln(table, "    "+printable(name)+"\t"+printable(node)+"\t"+printable(door)+"\t"+seen+"\t"+holds+"\t"+printable(until))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if more := count - len(list); more > 0 {
		fmt.Fprintf(v.w, "    … and %d more\n", more)
	}
	return nil
}
