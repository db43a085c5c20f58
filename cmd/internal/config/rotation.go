package config

import (
	"fmt"
	"time"

	"github.com/hallmark-ca/hallmark/ca/rotate"
)

type rotationFile struct {
	// What is done when a root comes to half of its life and nobody asks: disabled
	// (nothing), propose (status and metrics say so) or run (a new root is made, and
	// the rotation goes on at each gate that opens). `hallmark rotate` works with
	// each of them.
	Automatic string `json:"automatic"`
	// When a step may be taken by itself, such as "Mon-Thu 09:00-16:00
	// Europe/Paris"; none means at any time. Commands of a person do not wait.
	Windows []string `json:"windows"`
	// How long the key of a root that was retired is kept before it is destroyed;
	// at least 24h.
	KeyHold string `json:"keyHold"`
	// How long proxies have to come back in the rehearsal before a root is retired,
	// when all connections are ended once and our own certificate is under the new
	// root; at least 30s.
	RehearsalWindow string `json:"rehearsalWindow"`
}

// Pauses of a rotation that are no settings.
const (
	rehearsalPause = 15 * time.Minute // after a failed rehearsal
	clockSettle    = 10 * time.Minute // after the clock has jumped
)

const (
	minKeyHold   = 24 * time.Hour
	maxKeyHold   = 10 * 366 * 24 * time.Hour
	minRehearsal = 30 * time.Second
	maxRehearsal = time.Hour
)

func (c *checker) rotation(f *rotationFile, authority *Authority, unsafeShort bool) rotate.Policy {
	p := rotate.Policy{
		Automatic: choose(c, "rotation.automatic", f.Automatic, []string{"disabled", "propose", "run"},
			[]rotate.Automatic{rotate.Disabled, rotate.Propose, rotate.RunAlone}),
		RootLifetime:    authority.RootLifetime,
		LeafLifetime:    authority.LeafMax,
		KeyHold:         c.duration("rotation.keyHold", f.KeyHold, maxKeyHold),
		RehearsalWindow: c.duration("rotation.rehearsalWindow", f.RehearsalWindow, maxRehearsal),
		RehearsalPause:  rehearsalPause,
		ClockSettle:     clockSettle,
	}
	for i, text := range f.Windows {
		window, err := rotate.ParseWindow(text)
		if err != nil {
			c.add(at("rotation.windows", i), err.Error(), "write days, from-to and a time zone")
			continue
		}
		p.Windows = append(p.Windows, window)
	}
	if unsafeShort {
		// A failed rehearsal is tried again on the same scale.
		p.RehearsalPause = max(p.RehearsalWindow, time.Second)
		return p
	}
	if p.KeyHold != 0 && p.KeyHold < minKeyHold {
		c.add("rotation.keyHold", fmt.Sprintf("%s is below the floor", Short(p.KeyHold)), "write at least "+Short(minKeyHold))
	}
	if p.RehearsalWindow != 0 && p.RehearsalWindow < minRehearsal {
		c.add("rotation.rehearsalWindow", fmt.Sprintf("%s is below the floor", Short(p.RehearsalWindow)), "write at least "+Short(minRehearsal))
	}
	return p
}
