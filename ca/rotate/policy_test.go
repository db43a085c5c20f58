package rotate_test

import (
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ca/hallmark/ca/rotate"
)

func TestWindow(t *testing.T) {
	t.Parallel()
	at := func(s string) time.Time {
		v, err := time.Parse("Mon 2006-01-02 15:04 -0700", s)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	for _, tt := range []struct{ window, now, opens string }{
		{"09:00-16:00", "Mon 2026-03-02 09:00 +0000", ""},
		{"09:00-16:00", "Mon 2026-03-02 15:59 +0000", ""},
		{"09:00-16:00", "Mon 2026-03-02 16:00 +0000", "Tue 2026-03-03 09:00 +0000"},
		{"Mon-Fri 09:00-16:00", "Fri 2026-03-06 17:00 +0000", "Mon 2026-03-09 09:00 +0000"},
		{"Sat,Sun 00:00-24:00", "Sun 2026-03-08 23:59 +0000", ""},
		{"Sat,Sun 00:00-24:00", "Mon 2026-03-09 00:00 +0000", "Sat 2026-03-14 00:00 +0000"},
		{"Fri-Mon 01:00-02:00", "Tue 2026-03-03 01:30 +0000", "Fri 2026-03-06 01:00 +0000"},
		{"Fri 22:00-04:00", "Sat 2026-03-07 03:59 +0000", ""},
		{"Fri 22:00-04:00", "Fri 2026-03-06 03:59 +0000", "Fri 2026-03-06 22:00 +0000"},
		{"Mon 08:00-08:00", "Tue 2026-03-03 07:59 +0000", ""},
		{"Mon 08:00-08:00", "Tue 2026-03-03 08:00 +0000", "Mon 2026-03-09 08:00 +0000"},
		{"Mon 09:00-10:00 Europe/Paris", "Mon 2026-03-02 08:30 +0000", ""},
		// The clock goes on by an hour in the night before.
		{"Sun 09:00-10:00 Europe/Paris", "Sun 2026-03-29 06:00 +0000", "Sun 2026-03-29 07:00 +0000"},
		{"Sun 02:30-05:00 Europe/Paris", "Sun 2026-03-29 02:00 +0000", ""},
		// Days are those of the zone.
		{"Mon 00:00-01:00 Asia/Tokyo", "Sun 2026-03-01 15:30 +0000", ""},
	} {
		w := parseWindow(t, tt.window)
		now := at(tt.now)
		pol := policy()
		pol.Automatic, pol.Windows = rotate.RunAlone, []rotate.Window{w}
		state := stateWith(t, "active", "published")
		for i := range state.Roots {
			state.Roots[i].Since = now.Add(-time.Hour)
		}
		step, wait := rotate.Next(state, rotate.Seen{}, pol, now)
		switch {
		case tt.opens == "" && step.Act != rotate.Activate:
			t.Errorf("%q at %s: shut until %s, want open", tt.window, tt.now, wait.Until)
		case tt.opens != "" && (step.Act != "" || !wait.Until.Equal(at(tt.opens))):
			t.Errorf("%q at %s: step %s, waits until %s, want %s", tt.window, tt.now, step.Act, wait.Until, tt.opens)
		}
	}
}

// The first of several windows counts.
func TestWindows(t *testing.T) {
	t.Parallel()
	pol := policy()
	pol.Automatic = rotate.RunAlone
	pol.Windows = []rotate.Window{parseWindow(t, "Fri 10:00-11:00"), parseWindow(t, "Wed 10:00-11:00")}
	_, wait := rotate.Next(stateWith(t, "active", "published"), rotate.Seen{}, pol, began.Add(time.Hour))
	if want := time.Date(2026, 3, 4, 10, 0, 0, 0, time.UTC); !wait.Until.Equal(want) {
		t.Errorf("waits until %s, want %s", wait.Until, want)
	}
}

func TestParseWindowRefuses(t *testing.T) {
	t.Parallel()
	for _, s := range []string{
		"", "Mon", "Mon-Fri", "09:00", "9:00-10:00", "09:00-25:00", "09:60-10:00", "24:00-01:00", "09:00-24:01", "09:00 - 10:00",
		"mon 09:00-10:00", "Mon,, 09:00-10:00", "Mon-Fri-Sun 09:00-10:00", "Mon 09:00-10:00 Nowhere/City", "Mon 09:00-10:00 Local",
		"Mon 09:00-10:00 UTC more", "0٣:00-10:00", strings.Repeat("Mon,", 40) + "Mon 09:00-10:00",
	} {
		if _, err := rotate.ParseWindow(s); err == nil {
			t.Errorf("%q was read", s)
		}
	}
}

// Whatever is read is open at some time of each fortnight, or never shut.
func FuzzParseWindow(f *testing.F) {
	for _, s := range []string{"09:00-16:00", "Mon-Fri 09:00-16:00 Europe/Paris", "Sat,Sun 22:00-04:00", "Fri-Mon 00:00-24:00", "Mon 09:00"} {
		f.Add(s)
	}
	state := stateWith(f, "active", "published")
	f.Fuzz(func(t *testing.T, s string) {
		w, err := rotate.ParseWindow(s)
		if err != nil {
			return
		}
		pol := policy()
		pol.Automatic, pol.Windows = rotate.RunAlone, []rotate.Window{w}
		now := began.Add(time.Hour)
		step, wait := rotate.Next(state, rotate.Seen{}, pol, now)
		if step.Act == rotate.Activate {
			return
		}
		if wait.For != rotate.ForWindow || !wait.Until.After(now) || wait.Until.After(now.AddDate(0, 0, 9)) {
			t.Fatalf("%q at %s: %+v", s, now, wait)
		}
		if step, again := rotate.Next(state, rotate.Seen{}, pol, wait.Until); step.Act != rotate.Activate {
			t.Fatalf("%q should be open at %s: %+v", s, wait.Until, again)
		}
	})
}
