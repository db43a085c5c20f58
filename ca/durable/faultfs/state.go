package faultfs

import (
	"maps"
	"path"
	"slices"
)

// SectorSize is what a disk writes whole or not at all, in bytes.
const SectorSize = 512

// state is the content of a disk: as running processes see it, and as it would
// be found after a power cut.
type state struct {
	inodes  map[int]*inode
	next    int
	dirs    map[string]bool
	names   map[string]int
	durable map[string]int
	changes []change // of names, not yet durable, in order
	plain   bool     // nobody will cut the power: only what is live is kept
}

// change is one change of names.
type change struct {
	kind     Kind
	from, to string
	inode    int
}

// inode is one file.
type inode struct {
	live, disk []byte
	sizes      []int // lengths since the last sync, not durable
	sectors    map[int]*sector
}

// sector is one sector with content that is not durable.
type sector struct {
	versions [][]byte
	// dropped: a sync failed. The cache holds it as if it were clean, and no
	// sync writes it unless it is written again.
	dropped bool
}

func newState() *state {
	return &state{inodes: map[int]*inode{}, next: 1, dirs: map[string]bool{".": true}, names: map[string]int{}, durable: map[string]int{}}
}

func (s *state) clone() *state {
	c := &state{
		inodes: make(map[int]*inode, len(s.inodes)), next: s.next, dirs: maps.Clone(s.dirs),
		names: maps.Clone(s.names), durable: maps.Clone(s.durable), changes: slices.Clone(s.changes), plain: s.plain,
	}
	for n, i := range s.inodes {
		d := &inode{live: slices.Clone(i.live), disk: slices.Clone(i.disk), sizes: slices.Clone(i.sizes), sectors: make(map[int]*sector, len(i.sectors))}
		for at, sec := range i.sectors {
			d.sectors[at] = &sector{slices.Clone(sec.versions), sec.dropped}
		}
		c.inodes[n] = d
	}
	return c
}

func (s *state) apply(e entry) {
	switch e.Kind {
	case Create:
		s.inodes[e.inode] = &inode{sectors: map[int]*sector{}}
		s.next = max(s.next, e.inode+1)
		s.rename(change{kind: Create, to: e.Name, inode: e.inode})
	case Rename:
		s.rename(change{kind: Rename, from: e.from, to: e.Name, inode: e.inode})
	case Remove:
		s.rename(change{kind: Remove, from: e.Name, inode: e.inode})
	case SyncDir:
		s.changes = slices.DeleteFunc(s.changes, func(c change) bool {
			if c.dir() != e.Name {
				return false
			}
			c.apply(s.durable)
			return true
		})
	case Mkdir:
		for dir := e.Name; !s.dirs[dir]; dir = path.Dir(dir) {
			s.dirs[dir] = true
		}
	case Write:
		s.inodes[e.inode].write(e.data, int(e.Offset), s.plain)
	case Sync:
		if !s.plain {
			s.inodes[e.inode].sync(e.failed)
		}
	}
}

func (s *state) rename(c change) {
	c.apply(s.names)
	if s.plain {
		s.forget(c)
		return
	}
	s.changes = append(s.changes, c)
}

// forget frees the files that have no name any more.
func (s *state) forget(c change) {
	for n, i := range s.inodes {
		if n != c.inode && !slices.Contains(slices.Collect(maps.Values(s.names)), n) {
			i.live = nil
		}
	}
	if c.kind == Remove {
		s.inodes[c.inode].live = nil
	}
}

// dir returns the folder whose sync makes the change durable.
func (c change) dir() string {
	if c.to != "" {
		return path.Dir(c.to)
	}
	return path.Dir(c.from)
}

func (c change) apply(names map[string]int) {
	if c.from != "" && names[c.from] == c.inode {
		delete(names, c.from)
	}
	if c.to != "" {
		names[c.to] = c.inode
	}
}

func (i *inode) write(data []byte, at int, plain bool) {
	if len(data) == 0 {
		return
	}
	end := at + len(data)
	if end > len(i.live) {
		if end > cap(i.live) {
			i.live = slices.Grow(i.live, max(end, 2*cap(i.live))-len(i.live))
		}
		i.live = append(i.live, make([]byte, end-len(i.live))...)
		if !plain {
			i.sizes = append(i.sizes, end)
		}
	}
	copy(i.live[at:], data)
	if plain {
		return
	}
	for n := at / SectorSize; n <= (end-1)/SectorSize; n++ {
		sec := i.sectors[n]
		if sec == nil {
			sec = &sector{}
			i.sectors[n] = sec
		}
		sec.dropped = false
		sec.versions = append(sec.versions, i.sector(n))
	}
}

// sector returns a copy of sector n as the cache has it.
func (i *inode) sector(n int) []byte {
	return slices.Clone(i.live[n*SectorSize : min(len(i.live), (n+1)*SectorSize)])
}

func (i *inode) sync(failed bool) {
	if failed {
		for _, sec := range i.sectors {
			sec.dropped = true
		}
		return
	}
	i.disk = resize(i.disk, len(i.live))
	i.sizes = nil
	for n, sec := range i.sectors {
		if !sec.dropped {
			copy(i.disk[n*SectorSize:], i.sector(n))
			delete(i.sectors, n)
		}
	}
}

func resize(b []byte, size int) []byte {
	if size <= len(b) {
		return b[:size]
	}
	return append(b, make([]byte, size-len(b))...)
}
