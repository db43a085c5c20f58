package main

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/hallmark-ca/hallmark/cmd/internal/cli"
	"github.com/hallmark-ca/hallmark/cmd/internal/config"
)

const (
	commentsFile = configDir + "/comments.json"
	commandDocs  = "docs/cli"
	modulesFile  = "cmd/hallmark/modules.txt"
)

func addReasons(_ string, files map[string][]byte) error {
	var b bytes.Buffer
	if err := cli.WriteReasons(&b, "markdown"); err != nil {
		return err
	}
	files["docs/reasons.md"] = b.Bytes()
	return nil
}

func addSettings(_ string, files map[string][]byte) error {
	settings, err := config.Settings(config.Defaults(), files[commentsFile])
	if err != nil {
		return err
	}
	var b bytes.Buffer
	b.WriteString(`# Configuration

One YAML file, read strictly: an unknown key is an error, and every problem is reported at once with its path
and what mends it. ` + "`hallmark init`" + ` writes it with these comments; ` + "`hallmark serve --check`" + ` checks it and probes
what it depends on.

Durations are texts with a unit (` + "`90s`, `10m`, `6h`" + `; there is no ` + "`d`" + `), sizes likewise (` + "`512MiB`, `8GiB`" + `). The words
` + "`y`, `n`, `yes`, `no`, `on`, `off`" + ` are refused without quotes, because YAML readers differ over them.
A change needs a restart, unless the setting says otherwise. Settings named ` + "`unsafe…`" + ` lift a floor and are meant for
tests.

`)
	for _, s := range settings {
		text := strings.ReplaceAll(s.Doc, "\n", " ")
		if s.Group {
			fmt.Fprintf(&b, "## %s\n\n%s\n\n", s.Path, text)
			continue
		}
		if !strings.Contains(s.Path, ".") && s.Path == "trustDomain" {
			b.WriteString("## General\n\n")
		}
		value := "`" + strings.ReplaceAll(s.Default, "\n", "`, `") + "`"
		if s.Default == `""` {
			value = "empty"
		}
		fmt.Fprintf(&b, "**`%s`** (%s, default %s)  \n%s\n\n", s.Path, s.Kind, strings.ReplaceAll(value, "`- ", "`"), text)
	}
	files["docs/configuration.md"] = append(bytes.TrimRight(b.Bytes(), "\n"), '\n')
	return nil
}

// addCommands renders a page for each command.
func addCommands(_ string, files map[string][]byte) error {
	root := cli.Root()
	root.InitDefaultCompletionCmd()
	return addCommand(root, files)
}

func addCommand(c *cobra.Command, files map[string][]byte) error {
	c.DisableAutoGenTag = true
	c.InitDefaultHelpFlag()
	var b bytes.Buffer
	if err := doc.GenMarkdownCustom(c, &b, func(name string) string { return name }); err != nil {
		return err
	}
	name := strings.ReplaceAll(c.CommandPath(), " ", "_")
	files[commandDocs+"/"+name+".md"] = append(bytes.TrimRight(b.Bytes(), "\n"), '\n')
	for _, sub := range c.Commands() {
		if !sub.IsAvailableCommand() || sub.IsAdditionalHelpTopicCommand() {
			continue
		}
		if err := addCommand(sub, files); err != nil {
			return err
		}
	}
	return nil
}

// addModules lists the modules that the binary links, without versions: a new
// dependency is then a line in a review.
func addModules(root string, files map[string][]byte) error {
	cmd := exec.CommandContext(context.Background(), "go", "list", "-deps", "-f", "{{with .Module}}{{if not .Main}}{{.Path}}{{end}}{{end}}", "./cmd/hallmark")
	cmd.Dir = root
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("listing modules: %w", err)
	}
	seen := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		seen[strings.TrimSpace(line)] = true
	}
	delete(seen, "")
	files[modulesFile] = sortedLines(seen)
	return nil
}
