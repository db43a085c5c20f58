// Command cmd signs a container image with a key, for those who try the demo
// by hand; production signs with cosign.
//
//	cd test && go run ./sign/cmd new-key KEYFILE                 # writes KEYFILE and KEYFILE.pub
//	cd test && go run ./sign/cmd sign [-legacy] KEYFILE IMAGE@DIGEST
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/hallmark-ca/hallmark/test/sign"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

var errUsage = errors.New("usage: new-key KEYFILE | sign [-legacy] KEYFILE IMAGE@DIGEST")

func run(ctx context.Context, args []string) error {
	switch {
	case len(args) == 2 && args[0] == "new-key":
		return newKey(args[1])
	case len(args) > 0 && args[0] == "sign":
		flags := flag.NewFlagSet("sign", flag.ContinueOnError)
		legacy := flags.Bool("legacy", false, "write the older format, at tag sha256-<hex>.sig")
		if err := flags.Parse(args[1:]); err != nil || flags.NArg() != 2 {
			return errUsage
		}
		return signImage(ctx, flags.Arg(0), flags.Arg(1), *legacy)
	}
	return errUsage
}

func newKey(path string) error {
	k, err := sign.NewKey()
	if err != nil {
		return err
	}
	pub, err := k.PublicPEM()
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("writing the key: %w", err)
	}
	_, err = f.Write(k.PrivatePEM())
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("writing the key: %w", err)
	}
	return os.WriteFile(path+".pub", pub, 0o644)
}

func signImage(ctx context.Context, keyFile, image string, legacy bool) error {
	b, err := os.ReadFile(keyFile)
	if err != nil {
		return fmt.Errorf("reading the key: %w", err)
	}
	k, err := sign.ParseKey(b)
	if err != nil {
		return err
	}
	ref, err := name.NewDigest(image)
	if err != nil {
		return fmt.Errorf("reading the image's name: %w (a tag can move: sign a digest)", err)
	}
	if legacy {
		return sign.Legacy(ctx, ref, k)
	}
	_, err = sign.Bundle(ctx, ref, k)
	return err
}
