package ca

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/hallmark-ca/hallmark/ca/ledger"
	"github.com/hallmark-ca/hallmark/ca/profile"
)

// DoorSelf is the door of our own certificates in the ledger.
const DoorSelf = "self"

// Serving is the profile of our own serving certificates: the names by which
// clients reach us. It is not reached by any front end.
type Serving struct {
	ID       string // for the ledger
	DNS      []string
	IPs      []net.IP
	Lifetime time.Duration
}

// check wants names of hosts (RFC 1123 section 2.1, in lower case) and
// addresses, so that nothing that looks like an identity gets in by this way.
func (s Serving) check() error {
	if len(s.DNS)+len(s.IPs) == 0 {
		return errors.New("no names")
	}
	for _, name := range s.DNS {
		for label := range strings.SplitSeq(name, ".") {
			if len(label) > 63 || len(name) > 253 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || strings.Trim(label, "-") != label || label == "" {
				return fmt.Errorf("%q is no name of a host", name)
			}
		}
	}
	for _, ip := range s.IPs {
		if ip.To16() == nil {
			return fmt.Errorf("address %q has %d bytes", ip, len(ip))
		}
	}
	return nil
}

// Mint makes a serving certificate for a key of our own, under the snapshot of
// [Authority.InstallServing] or the current one, and recorded as every other.
func (a *Authority) Mint(ctx context.Context, names Serving, pub crypto.PublicKey) (*Issued, error) {
	snap := a.serving.Load()
	if snap == nil {
		snap = a.current.Load()
	}
	if snap == nil {
		return nil, errors.New("minting serving certificate: no snapshot is installed")
	}
	if err := names.check(); err != nil {
		return nil, fmt.Errorf("minting serving certificate: %w", err)
	}
	validity, err := a.validity(a.cfg.Now(), snap, Request{Lifetime: names.Lifetime}, false)
	if err != nil {
		return nil, fmt.Errorf("minting serving certificate: %w", err)
	}
	key, err := encodeKey(pub, nil)
	if err != nil {
		return nil, fmt.Errorf("minting serving certificate: %w", err)
	}
	serial, serialHex := newSerial()
	cert := &profile.Certificate{Serial: serial, Subject: profile.EmptyName, DNS: names.DNS, IPs: names.IPs}
	fillLeaf(snap, key, validity, cert)
	ready, err := a.prepareChecked(snap, pub, cert)
	if err != nil {
		return nil, fmt.Errorf("minting serving certificate: %w", err)
	}
	shown := slices.Clone(names.DNS)
	for _, ip := range names.IPs {
		shown = append(shown, ip.String())
	}
	intent := &ledger.Intent{ID: names.ID, Time: validity.Issued, Serial: serialHex, Door: DoorSelf, Identity: strings.Join(shown, ",")}
	fillIntent(intent, snap, validity, key, ready)
	der, err := a.record(ctx, intent, ready, snap)
	if err != nil {
		return nil, fmt.Errorf("minting serving certificate: %w", err)
	}
	return &Issued{DER: der, Serial: serialHex, NotBefore: validity.NotBefore, IssuedAt: validity.Issued, NotAfter: validity.NotAfter, Snapshot: snap}, nil
}
