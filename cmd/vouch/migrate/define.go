package migrate

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/vouchd/vouchd/credential/policy"
	"github.com/vouchd/vouchd/inventory"
	"github.com/vouchd/vouchd/state"
)

// A definition is how the credential of a sealed value is to be defined.
type definition struct {
	name     string
	item     string   // in the words of the file
	variable string   // in which programs have it; empty: a tool asks for it
	given    string   // which tool is given the value itself, and how
	unit     bool     // that tool is systemd, for a unit
	places   []string // for which tools may ask for it, as elements of "for"
	block    string   // instead of a preset's, its lines indented
	better   *broker  // that needs no static secret
}

// define adds definitions for the sealed credentials to the file to review, and keeps
// those already there. In a dry run it says which file that is.
func define(p *plan) error {
	if len(p.seals) == 0 {
		return nil
	}
	c, err := p.Load()
	if err != nil {
		return err
	}
	inForce := filepath.Join(c.CredentialsDir, p.prefix+".yaml")
	path := cmp.Or(p.definitions, inForce+".disabled")
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	reviewed, err := os.ReadFile(inForce)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if len(text) == 0 {
		text = []byte("# By " + p.command + ". Review it, and rename it to end in .yaml.\ncredentials:\n")
	}
	length := len(text)
	for i := range p.seals {
		d := &p.seals[i].definition
		defined := regexp.MustCompile(`(?m)^[ \t-]*name:[ \t]*` + regexp.QuoteMeta(d.name) + `[ \t]*$`)
		if defined.Match(text) || defined.Match(reviewed) {
			continue
		}
		text = appendDefinition(p, text, d)
		if d.better != nil {
			p.FillIn = append(p.FillIn, d.better.fillIn...)
		}
	}
	slices.Sort(p.FillIn)
	p.FillIn = slices.Compact(p.FillIn)
	if len(text) == length {
		return nil
	}
	p.Definitions = path
	if p.dryRun {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return state.ReplaceFileDurably(path, text, state.Mode(0o644))
}

// appendDefinition appends the definition of a sealed credential. Calls are made with one
// whose clients are known; others are undeliverable until somebody says how.
func appendDefinition(p *plan, text []byte, d *definition) []byte {
	text = fmt.Appendf(text, "  - name: %s\n    description: %q\n    broker: static\n", d.name, describe(p, d))
	places := ""
	if len(d.places) > 0 {
		places = "    for:\n"
		for _, place := range d.places {
			places += "      - " + place + "\n"
		}
	}
	preset, known := policy.PresetOf(d.variable)
	switch {
	case d.unit:
		text = fmt.Appendf(text, "    bind: unit\n    static:\n      disclosable: true # %s\n", d.given)
	case d.given != "":
		text = fmt.Appendf(text, "    ttl: 1h\n%s    static:\n      disclosable: true # %s\n", places, d.given)
	case p.disclosable:
		text = append(text, "    bind: lease # or unit, for LoadCredential=; or process, for a program that asks by itself\n    static:\n      disclosable: true # to programs that an entry grants it\n"...)
		if known {
			text = fmt.Appendf(text, "    # Better: remove disclosable, and have vouchd make the calls (docs/proxy.md).\n    # proxy: {preset: %s}\n", preset)
		}
	case d.block != "":
		text = append(append(text, "    ttl: 1h # no connection lives longer\n    limits: {rate: 600/1m, concurrent: 100} # of connections\n    static:\n      disclosable: false\n"...), d.block...)
	case known:
		text = fmt.Appendf(text, "    ttl: 1h\n    static:\n      disclosable: false\n    proxy: # vouchd makes the calls: the program never has the value (docs/proxy.md)\n      preset: %s\n", preset)
	default:
		text = append(text, "    bind: lease # or unit, for LoadCredential=; or process, for a program that asks by itself\n    static:\n      disclosable: false # needs a proxy block (docs/proxy.md), or true, which hands the value to programs\n"...)
	}
	if d.better != nil {
		text = d.better.append(text, d.name, places, preset)
	}
	return text
}

const mostDescribed = 200 // bytes

// describe says whose secret it was. Its words are of the file, which need not be the
// administrator's.
func describe(p *plan, d *definition) string {
	text := inventory.Printable(d.item) + " of " + inventory.Printable(filepath.Base(p.file.Path))
	return strings.ToValidUTF8(text[:min(len(text), mostDescribed)], "")
}
