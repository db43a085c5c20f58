package config

import (
	"fmt"
	"time"
)

type ledgerFile struct {
	// The disk space of the ledger; at 95 % of it this replica stops issuing,
	// before any signature. At least 512MiB.
	MaxBytes string `json:"maxBytes"`
	// How long records are kept; at least authority.leaf.max.
	Retention string `json:"retention"`
}

type logFile struct {
	// The lowest level that is logged: debug, info, warn or error.
	Level string `json:"level"`
}

// Ledger is the checked issuance ledger.
type Ledger struct {
	MaxBytes  int64
	Retention time.Duration
}

const (
	minLedger    = 512 << 20
	maxRetention = 10 * 366 * 24 * time.Hour
)

func (c *checker) ledger(f *ledgerFile, leafMax time.Duration) Ledger {
	l := Ledger{
		MaxBytes:  c.size("ledger.maxBytes", f.MaxBytes, minLedger, "512MiB"),
		Retention: c.duration("ledger.retention", f.Retention, maxRetention),
	}
	if l.Retention != 0 && l.Retention < leafMax {
		c.add("ledger.retention", fmt.Sprintf("%s is shorter than a leaf lives (authority.leaf.max, %s): certificates in use would be on no record", Short(l.Retention), Short(leafMax)), "write at least "+Short(leafMax))
	}
	return l
}
