package profile_test

import (
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ca/hallmark/ca/profile"
)

var defaults = profile.LeafConfig{Default: 6 * time.Hour, Max: 24 * time.Hour, Min: 10 * time.Minute, BackDate: 2 * time.Minute}

func leaf(t *testing.T, change func(*profile.LeafConfig)) *profile.Leaf {
	t.Helper()
	cfg := defaults
	if change != nil {
		change(&cfg)
	}
	l, err := profile.NewLeaf(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestLeafConfig(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*profile.LeafConfig)
		want   string
	}{
		"no minimum":             {func(c *profile.LeafConfig) { c.Min = 0 }, "ordered"},
		"default below minimum":  {func(c *profile.LeafConfig) { c.Default = time.Minute }, "ordered"},
		"default above maximum":  {func(c *profile.LeafConfig) { c.Default = 25 * time.Hour }, "ordered"},
		"maximum above a day":    {func(c *profile.LeafConfig) { c.Max = 24*time.Hour + time.Second }, "above 24h"},
		"minimum below a minute": {func(c *profile.LeafConfig) { c.Min = 59 * time.Second }, "below 1m"},
		"back-date ahead":        {func(c *profile.LeafConfig) { c.BackDate = -1 }, "back-date"},
		"back-date of hours":     {func(c *profile.LeafConfig) { c.BackDate = time.Hour }, "back-date"},
	} {
		cfg := defaults
		tt.change(&cfg)
		if _, err := profile.NewLeaf(cfg); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	short := defaults
	short.Min, short.UnsafeShort = time.Second, true
	if _, err := profile.NewLeaf(short); err != nil {
		t.Error(err)
	}
	bad := profile.LeafConfig{Min: 2, Default: 1, Max: 48 * time.Hour, BackDate: time.Hour}
	if _, err := profile.NewLeaf(bad); strings.Count(err.Error(), "\n") != 3 {
		t.Errorf("not every problem is named at once: %v", err)
	}
}

func TestValidity(t *testing.T) {
	now := time.Date(2026, 7, 1, 12, 0, 0, 987654321, time.FixedZone("x", 7200))
	far := now.Add(72 * time.Hour)
	for name, tt := range map[string]struct {
		change func(*profile.LeafConfig)
		ask    profile.Ask
		want   time.Duration // 0: refused
		err    error
	}{
		"default":                     {nil, profile.Ask{IssuerEnds: far}, 6 * time.Hour, nil},
		"asked":                       {nil, profile.Ask{Lifetime: time.Hour, IssuerEnds: far}, time.Hour, nil},
		"the maximum":                 {nil, profile.Ask{Lifetime: 24 * time.Hour, IssuerEnds: far}, 24 * time.Hour, nil},
		"too long is cut":             {nil, profile.Ask{Lifetime: 1000 * time.Hour, IssuerEnds: far}, 24 * time.Hour, nil},
		"too long is refused":         {func(c *profile.LeafConfig) { c.RefuseLong = true }, profile.Ask{Lifetime: 25 * time.Hour, IssuerEnds: far}, 0, profile.ErrLifetime},
		"the longest there is":        {nil, profile.Ask{Lifetime: math.MaxInt64, IssuerEnds: far}, 24 * time.Hour, nil},
		"negative":                    {nil, profile.Ask{Lifetime: -1, IssuerEnds: far}, 0, profile.ErrLifetime},
		"the most negative":           {nil, profile.Ask{Lifetime: math.MinInt64, IssuerEnds: far}, 0, profile.ErrLifetime},
		"below the minimum":           {nil, profile.Ask{Lifetime: 9 * time.Minute, IssuerEnds: far}, 0, profile.ErrLifetime},
		"below the door's floor":      {nil, profile.Ask{Lifetime: 20 * time.Minute, Floor: 30 * time.Minute, IssuerEnds: far}, 0, profile.ErrLifetime},
		"default below door's floor":  {nil, profile.Ask{Floor: 7 * time.Hour, IssuerEnds: far}, 7 * time.Hour, nil},
		"floor above maximum":         {func(c *profile.LeafConfig) { c.Max = 6 * time.Hour }, profile.Ask{Floor: 7 * time.Hour, IssuerEnds: far}, 6 * time.Hour, nil},
		"provisional":                 {nil, profile.Ask{Lifetime: 12 * time.Hour, Provisional: true, IssuerEnds: far}, 10 * time.Minute, nil},
		"provisional, with a floor":   {nil, profile.Ask{Floor: 30 * time.Minute, Provisional: true, IssuerEnds: far}, 30 * time.Minute, nil},
		"cut to the issuer's end":     {nil, profile.Ask{IssuerEnds: now.Add(time.Hour).Truncate(time.Second)}, time.Hour, nil},
		"issuer ends too soon":        {nil, profile.Ask{IssuerEnds: now.Add(9 * time.Minute)}, 0, profile.ErrIssuerEnding},
		"issuer has ended":            {nil, profile.Ask{IssuerEnds: now.Add(-time.Hour)}, 0, profile.ErrIssuerEnding},
		"renewal point would be past": {func(c *profile.LeafConfig) { c.Min, c.BackDate = time.Minute, 10*time.Minute }, profile.Ask{IssuerEnds: now.Add(10 * time.Minute)}, 0, profile.ErrIssuerEnding},
		"short, for tests":            {func(c *profile.LeafConfig) { c.Min, c.UnsafeShort = time.Second, true }, profile.Ask{Lifetime: 2 * time.Second, Floor: time.Hour, IssuerEnds: far}, 2 * time.Second, nil},
	} {
		v, err := leaf(t, tt.change).Validity(now, tt.ask)
		if !errors.Is(err, tt.err) || (err == nil) != (tt.err == nil) {
			t.Errorf("%s: %v, want %v", name, err, tt.err)
			continue
		}
		if err != nil {
			continue
		}
		if got := v.NotAfter.Sub(v.Issued); got != tt.want {
			t.Errorf("%s: a life of %s, want %s", name, got, tt.want)
		}
		cfg := defaults
		if tt.change != nil {
			tt.change(&cfg)
		}
		if !v.Issued.Equal(now.Truncate(time.Second)) || v.Issued.Location() != time.UTC || v.Issued.Sub(v.NotBefore) != cfg.BackDate {
			t.Errorf("%s: issued %s, valid from %s", name, v.Issued, v.NotBefore)
		}
	}
}

// Jitter takes away up to 5 %, never more, and never what is below the floor.
func TestJitter(t *testing.T) {
	now := time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)
	l := leaf(t, nil)
	for _, life := range []time.Duration{10 * time.Minute, 10*time.Minute + 20*time.Second, time.Hour, 6 * time.Hour, 24 * time.Hour} {
		least, most := life, time.Duration(0)
		for jitter := range uint64(10_000) {
			v, err := l.Validity(now, profile.Ask{Lifetime: life, IssuerEnds: now.Add(48 * time.Hour), Jitter: jitter * 0x9e3779b97f4a7c15})
			if err != nil {
				t.Fatal(err)
			}
			got := v.NotAfter.Sub(v.Issued)
			least, most = min(least, got), max(most, got)
		}
		want := max(10*time.Minute, life-(life/20).Truncate(time.Second))
		if most != life || least != want {
			t.Errorf("%s: lives of %s to %s, want %s to %s", life, least, most, want, life)
		}
	}
}
