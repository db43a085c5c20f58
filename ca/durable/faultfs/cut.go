package faultfs

import (
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"slices"
)

// Piece is one thing that was not durable at a cut, and that may be found in
// any of its versions. Versions of different pieces are independent.
type Piece struct {
	Index    int    // in [Cut.Pieces]
	What     string // sector, size, name
	Inode    int
	Sector   int
	Versions int // 0 is the durable one, Versions the newest
}

// Cut is the moment after an operation, and everything the disk may be found to
// be if the power goes there. It is valid until the next one is asked for.
type Cut struct {
	After  int // how many recorded operations were carried out
	Last   Op  // the last of them
	Pieces []Piece
	state  *state
}

// Cuts gives the moment before the first recorded operation, and that after
// each of them.
func (d *Disk) Cuts() iter.Seq[*Cut] {
	d.mu.Lock()
	s, log := d.base.clone(), slices.Clone(d.log)
	d.mu.Unlock()
	return func(yield func(*Cut) bool) {
		if !yield(&Cut{Pieces: s.pieces(), state: s}) {
			return
		}
		for i, e := range log {
			s.apply(e)
			if !yield(&Cut{After: i + 1, Last: e.Op, Pieces: s.pieces(), state: s}) {
				return
			}
		}
	}
}

// pieces lists what is not durable, in an order that depends on nothing else.
func (s *state) pieces() []Piece {
	var out []Piece
	add := func(p Piece) {
		p.Index = len(out)
		out = append(out, p)
	}
	for _, c := range s.changes {
		add(Piece{What: "name", Inode: c.inode, Versions: 1})
	}
	for _, n := range slices.Sorted(maps.Keys(s.inodes)) {
		i := s.inodes[n]
		if len(i.sizes) > 0 {
			add(Piece{What: "size", Inode: n, Versions: len(i.sizes)})
		}
		for _, at := range slices.Sorted(maps.Keys(i.sectors)) {
			add(Piece{What: "sector", Inode: n, Sector: at, Versions: len(i.sectors[at].versions)})
		}
	}
	return out
}

// Image returns the disk that is found after the cut if each piece is in the
// version that pick chooses. It records from there on.
func (c *Cut) Image(pick func(Piece) int) *Disk {
	chosen := make([]int, len(c.Pieces))
	for i, p := range c.Pieces {
		chosen[i] = min(max(pick(p), 0), p.Versions)
	}
	found := newState()
	found.dirs, found.next = maps.Clone(c.state.dirs), c.state.next
	names := maps.Clone(c.state.durable)
	next := 0
	for _, change := range c.state.changes {
		if chosen[next] == 1 {
			change.apply(names)
		}
		next++
	}
	for _, n := range slices.Sorted(maps.Keys(c.state.inodes)) {
		i := c.state.inodes[n]
		size := len(i.disk)
		if len(i.sizes) > 0 {
			if v := chosen[next]; v > 0 {
				size = i.sizes[v-1]
			}
			next++
		}
		data := resize(slices.Clone(i.disk), len(i.live))
		for _, at := range slices.Sorted(maps.Keys(i.sectors)) {
			if v := chosen[next]; v > 0 {
				copy(data[at*SectorSize:], i.sectors[at].versions[v-1])
			}
			next++
		}
		data = resize(data, size)
		found.inodes[n] = &inode{live: data, disk: slices.Clone(data), sectors: map[int]*sector{}}
	}
	found.names, found.durable = names, maps.Clone(names)
	d := newDisk(found)
	d.record = true
	return d
}

// Lost is a pick: nothing that was not synced is found.
func Lost(Piece) int { return 0 }

// Kept is a pick: all of it is found.
func Kept(p Piece) int { return p.Versions }

// Images gives the disks that may be found after the cut: with all of what was
// not durable, with nothing, with everything but one piece, with one piece
// alone, and with parts chosen by chance (the same in each run), at most limit
// in all. Each comes with a name that says how it was made.
func (c *Cut) Images(limit int) iter.Seq2[string, *Disk] {
	return func(yield func(string, *Disk) bool) {
		if !yield("all lost", c.Image(Lost)) || len(c.Pieces) == 0 || !yield("all kept", c.Image(Kept)) {
			return
		}
		chance := rand.New(rand.NewPCG(uint64(c.After), uint64(len(c.Pieces))))
		// Pieces by turns from the end: the last of many are those of the commit
		// under way, the first of them often a file that is being zeroed.
		room := (limit - 2) / 2
		for n := range min(len(c.Pieces), room/2) {
			p := c.Pieces[len(c.Pieces)-1-n]
			if !yield(fmt.Sprintf("%s %d lost", p.What, p.Index), c.Image(func(q Piece) int {
				if q.Index == p.Index {
					return 0
				}
				return q.Versions
			})) {
				return
			}
			if !yield(fmt.Sprintf("%s %d alone", p.What, p.Index), c.Image(func(q Piece) int {
				if q.Index == p.Index {
					return q.Versions
				}
				return 0
			})) {
				return
			}
		}
		for n := range limit - 2 - 2*min(len(c.Pieces), room/2) {
			if len(c.Pieces) < 2 {
				return
			}
			if !yield(fmt.Sprintf("chance %d", n), c.Image(func(p Piece) int { return chance.IntN(p.Versions + 1) })) {
				return
			}
		}
	}
}
