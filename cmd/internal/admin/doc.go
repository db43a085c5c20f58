// Package admin is the door for the people who run the authority: HTTP and JSON
// on a Unix socket in the state directory, and the client that the command line
// uses.
//
// Invariants: only root and the account that the server runs as are answered, by
// what the kernel says of the peer (SO_PEERCRED), whatever the mode of the socket
// has become; each request is bounded in size, time and number; a body is read
// strictly, so that a misspelt word never becomes a step; who asked goes to the
// rotation, which journals it. A step that was asked for is taken also if whoever
// asked goes away.
//
// It holds no rules of rotation: what may be done now is for ca/rotate to say. It
// serves nothing on the network. A [Server] runs once; a [Client] is safe for
// concurrent use.
package admin
