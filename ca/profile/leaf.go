package profile

import (
	"errors"
	"fmt"
	"time"
)

// LeafConfig is a leaf profile as it was configured, unchecked.
type LeafConfig struct {
	Default  time.Duration // where a door names no lifetime
	Max      time.Duration
	Min      time.Duration
	BackDate time.Duration // for clocks that are behind
	// RefuseLong refuses a request above Max instead of giving Max.
	RefuseLong bool
	// UnsafeShort lifts the floor under Min and Default: for tests, where
	// certificates live for seconds.
	UnsafeShort bool
}

// Floors and ceilings of a leaf's lifetime. One below ten minutes makes ztunnel
// loop, because half of it drowns in the back-date; above a day, withdrawal by
// refusal would come too late.
const (
	leafFloor = time.Minute
	// LeafCeiling bounds the life of every leaf, whatever is configured: one that
	// was given out under another configuration, too.
	LeafCeiling = 24 * time.Hour
	backCeiling = 10 * time.Minute
)

// jitterPart is the largest part of a lifetime that jitter takes away, as a
// divisor: 5 %. Clients renew at half of what they see, without jitter of their
// own; the difference spreads them (one in twenty of a lifetime, after each
// renewal again).
const jitterPart = 20

// Leaf is a checked leaf profile.
type Leaf struct{ cfg LeafConfig }

// NewLeaf checks cfg and names all that is wrong with it.
func NewLeaf(cfg LeafConfig) (*Leaf, error) {
	var errs []error
	if cfg.Min <= 0 || cfg.Min > cfg.Default || cfg.Default > cfg.Max {
		errs = append(errs, fmt.Errorf("lifetimes must be ordered: 0 < minimum (%s) ≤ default (%s) ≤ maximum (%s)", cfg.Min, cfg.Default, cfg.Max))
	}
	if cfg.Max > LeafCeiling {
		errs = append(errs, fmt.Errorf("maximum %s is above %s", cfg.Max, LeafCeiling))
	}
	if cfg.Min < leafFloor && !cfg.UnsafeShort {
		errs = append(errs, fmt.Errorf("minimum %s is below %s", cfg.Min, leafFloor))
	}
	if cfg.BackDate < 0 || cfg.BackDate > backCeiling {
		errs = append(errs, fmt.Errorf("back-date %s is not within 0 to %s", cfg.BackDate, backCeiling))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("checking leaf profile: %w", err)
	}
	return &Leaf{cfg}, nil
}

// Errors of [Leaf.Validity].
var (
	ErrLifetime     = errors.New("lifetime is not positive or outside the profile")
	ErrIssuerEnding = errors.New("issuer ends too soon")
)

// Ask is what bears on one leaf's validity.
type Ask struct {
	Lifetime    time.Duration // wanted; 0 asks for the default
	Floor       time.Duration // the door's own minimum; the profile's holds as well where it is higher
	Provisional bool          // give the minimum
	IssuerEnds  time.Time
	Jitter      uint64 // random
}

// Validity is a leaf's validity. NotBefore lies Issued − back-date.
type Validity struct{ NotBefore, Issued, NotAfter time.Time }

// Validity decides a leaf's validity, in whole seconds. The lifetime counts
// from now, not from notBefore, and is at most 5 % shorter than asked; it never
// reaches past the issuer's end, and never is so short that the renewal point
// that a client computes, half of (notAfter − notBefore), has passed already.
func (l *Leaf) Validity(now time.Time, ask Ask) (Validity, error) {
	issued := now.UTC().Truncate(time.Second)
	floor := min(max(l.cfg.Min, ask.Floor), l.cfg.Max)
	if l.cfg.UnsafeShort {
		floor = l.cfg.Min
	}
	life := ask.Lifetime
	switch {
	case life == 0:
		life = max(l.cfg.Default, floor)
	case life < floor:
		return Validity{}, fmt.Errorf("%w: %s is below the minimum of %s", ErrLifetime, life, floor)
	case life > l.cfg.Max && l.cfg.RefuseLong:
		return Validity{}, fmt.Errorf("%w: %s is above the maximum of %s", ErrLifetime, life, l.cfg.Max)
	}
	life = min(life, l.cfg.Max)
	if ask.Provisional {
		life = floor
	}
	if spread := uint64(life / jitterPart / time.Second); spread > 0 && life > floor {
		life = max(floor, life-time.Duration(ask.Jitter%(spread+1))*time.Second)
	}
	v := Validity{NotBefore: issued.Add(-l.cfg.BackDate), Issued: issued, NotAfter: issued.Add(life.Truncate(time.Second))}
	if v.NotAfter.After(ask.IssuerEnds) {
		v.NotAfter = ask.IssuerEnds.UTC().Truncate(time.Second)
	}
	if left := v.NotAfter.Sub(issued); left < floor || (left <= l.cfg.BackDate && !l.cfg.UnsafeShort) {
		return Validity{}, fmt.Errorf("%w: %s are left, at least %s are needed", ErrIssuerEnding, left, floor)
	}
	return v, nil
}

// BackDate returns how long before its issue a leaf is valid.
func (l *Leaf) BackDate() time.Duration { return l.cfg.BackDate }
