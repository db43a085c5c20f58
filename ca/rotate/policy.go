package rotate

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Automatic says what the authority does about rotation when nobody asks.
type Automatic string

// What it does. Whatever it is, a person's commands work.
const (
	Disabled Automatic = "disabled" // nothing; the alerts on the root's age stay
	Propose  Automatic = "propose"  // it says when it is time, and what to type
	RunAlone Automatic = "run"      // it prepares, and goes on at each gate that opens
)

// Policy is how a rotation goes. All durations are required.
type Policy struct {
	Automatic Automatic
	// Windows are when a step may be taken that nobody asked for at that moment;
	// none means at any time. Commands of a person do not wait for them.
	Windows      []Window
	RootLifetime time.Duration // of a new root
	// LeafLifetime is the longest that a leaf can have. A consumer that has not
	// confirmed after two of them no longer holds gate A.
	LeafLifetime time.Duration
	// KeyHold is how long the key of a root that is out is kept.
	KeyHold time.Duration
	// RehearsalWindow is how long consumers have to come back, RehearsalPause
	// how long after a failed rehearsal the next is held.
	RehearsalWindow time.Duration
	RehearsalPause  time.Duration
	// ClockSettle is how long nothing moves after the clock has jumped.
	ClockSettle time.Duration
}

func (p *Policy) check() error {
	if p.Automatic != Disabled && p.Automatic != Propose && p.Automatic != RunAlone {
		return fmt.Errorf("automatic is %q, want disabled, propose or run", p.Automatic)
	}
	for _, d := range []time.Duration{p.RootLifetime, p.LeafLifetime, p.KeyHold, p.RehearsalWindow, p.RehearsalPause, p.ClockSettle} {
		if d <= 0 {
			return errors.New("lifetimes of root and leaf, key hold, window and pause of the rehearsal and the clock's time to settle are all required")
		}
	}
	return nil
}

// open tells whether a step may be taken at now that nobody asked for, and
// otherwise when.
func (p *Policy) open(now time.Time) (bool, time.Time) {
	if len(p.Windows) == 0 {
		return true, now
	}
	var next time.Time
	for _, w := range p.Windows {
		from, in := w.next(now)
		if in {
			return true, now
		}
		if next.IsZero() || from.Before(next) {
			next = from
		}
	}
	return false, next
}

// Window is a part of some days of the week, in one time zone.
type Window struct {
	days     [7]bool // on which it begins, Sunday first
	from, to int     // minutes since midnight; to ≤ from ends on the next day
	zone     *time.Location
}

// maxWindow bounds the text of a window, in bytes.
const maxWindow = 128

var weekdays = []string{"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"}

// ParseWindow reads a window: "[DAYS ]HH:MM-HH:MM[ ZONE]", where DAYS is a list
// of days and ranges of them ("Mon-Thu,Sat"; left out: every day) and ZONE an
// IANA name (left out: UTC). One that ends no later than it begins ends on the
// next day.
func ParseWindow(s string) (Window, error) {
	w := Window{zone: time.UTC}
	if len(s) > maxWindow {
		return w, fmt.Errorf("parsing window: %d bytes, at most %d are allowed", len(s), maxWindow)
	}
	fail := func(why string) (Window, error) {
		return Window{}, fmt.Errorf("parsing window %q: %s: want [DAYS ]HH:MM-HH:MM[ ZONE], such as Mon-Fri 09:00-16:00 Europe/Paris", s, why)
	}
	fields := strings.Fields(s)
	if len(fields) > 0 && !strings.Contains(fields[0], ":") {
		if !w.parseDays(fields[0]) {
			return fail("its days are not read")
		}
		fields = fields[1:]
	} else {
		w.days = [7]bool{true, true, true, true, true, true, true}
	}
	if len(fields) == 0 || len(fields) > 2 {
		return fail("it has not the parts of one")
	}
	from, to, ok := strings.Cut(fields[0], "-")
	if w.from = minutes(from); !ok || w.from < 0 || w.from == 24*60 {
		return fail("its begin is not read")
	}
	if w.to = minutes(to); w.to < 0 {
		return fail("its end is not read")
	}
	if len(fields) == 2 {
		zone, err := time.LoadLocation(fields[1])
		if err != nil || fields[1] == "Local" { // the machine's own is nobody's intention
			return fail("its time zone is not known")
		}
		w.zone = zone
	}
	return w, nil
}

func (w *Window) parseDays(s string) bool {
	for part := range strings.SplitSeq(s, ",") {
		first, last, ranged := strings.Cut(part, "-")
		if !ranged {
			last = first
		}
		from, to := weekday(first), weekday(last)
		if from < 0 || to < 0 {
			return false
		}
		for d := from; ; d = (d + 1) % 7 {
			w.days[d] = true
			if d == to {
				break
			}
		}
	}
	return true
}

func weekday(s string) int {
	for i, name := range weekdays {
		if s == name {
			return i
		}
	}
	return -1
}

// minutes reads HH:MM, up to 24:00; -1 for anything else.
func minutes(s string) int {
	if len(s) != 5 || s[2] != ':' {
		return -1
	}
	for _, i := range []int{0, 1, 3, 4} {
		if s[i] < '0' || s[i] > '9' {
			return -1
		}
	}
	h, m := int(s[0]-'0')*10+int(s[1]-'0'), int(s[3]-'0')*10+int(s[4]-'0')
	if m > 59 || h*60+m > 24*60 {
		return -1
	}
	return h*60 + m
}

// next returns whether now is in the window, and otherwise when it next begins.
func (w *Window) next(now time.Time) (time.Time, bool) {
	local := now.In(w.zone)
	end := w.to
	if w.to <= w.from {
		end += 24 * 60
	}
	var first time.Time
	// It may have begun yesterday; a day of the week comes again within seven.
	for d := -1; d <= 8; d++ {
		at := func(minute int) time.Time {
			return time.Date(local.Year(), local.Month(), local.Day()+d, 0, minute, 0, 0, w.zone)
		}
		if !w.days[(int(local.Weekday())+d+7)%7] {
			continue
		}
		from := at(w.from)
		if !now.Before(from) && now.Before(at(end)) {
			return now, true
		}
		if from.After(now) && (first.IsZero() || from.Before(first)) {
			first = from
		}
	}
	return first, false
}
