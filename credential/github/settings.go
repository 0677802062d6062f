package github

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/endpoint"
)

// settings are the keys of a definition's github section.
type settings struct {
	APIURL         config.At[string]                `yaml:"api_url" default:"https://api.github.com" like:"https://github.example.com/api/v3"`
	AppID          config.At[string]                `yaml:"app_id" required:"true" like:"Iv23liabcdefghijklmn"` // or the client ID
	InstallationID config.At[int]                   `yaml:"installation_id" required:"true" min:"1" max:"1000000000000" like:"12345678"`
	AppKeyFile     config.At[string]                `yaml:"app_key_file" required:"true" like:"/etc/vouchd/secrets/github-app.pem"`
	Repositories   []config.At[credential.Template] `yaml:"repositories" like:"site"`
	Permissions    []config.At[permission]          `yaml:"permissions" like:"contents:read"`
	CAFile         config.At[string]                `yaml:"ca_file" like:"/etc/vouchd/upstream-ca.pem"`
}

const (
	maxRepositories = 500 // that GitHub takes
	maxPermissions  = 64
	// tokenLife is what GitHub gives a token; the definition ends it earlier.
	tokenLife = time.Hour
)

// A permission is a part of GitHub and what may be done there, written
// contents:read.
type permission struct{ name, access string }

// accesses are from least to most.
var accesses = []string{"read", "write", "admin"}

var permissionName = regexp.MustCompile(`^[a-z][a-z_]{0,63}$`)

// UnmarshalText parses a permission.
func (p *permission) UnmarshalText(text []byte) error {
	name, access, _ := strings.Cut(string(text), ":")
	if !permissionName.MatchString(name) || !slices.Contains(accesses, access) {
		return errors.New("is not a permission and one of read, write, admin")
	}
	*p = permission{name, access}
	return nil
}

func (p permission) String() string { return p.name + ":" + p.access }

var (
	appID          = regexp.MustCompile(`^[A-Za-z0-9.]{1,64}$`)
	repositoryName = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,100}$`)
)

func readSettings(d *credential.Definition, section config.Section) (s settings, err error) {
	if err := section.Decode(&s); err != nil {
		return s, err
	}
	var problems config.Errors
	if err := endpoint.CheckURL(s.APIURL.Value); err != nil {
		problems.Add(s.APIURL.Pos, "api_url %.80q %v", s.APIURL.Value, err)
	}
	if !appID.MatchString(s.AppID.Value) {
		problems.Add(s.AppID.Pos, "app_id %.80q is not an app's client ID or number", s.AppID.Value)
	}
	for key, f := range map[string]config.At[string]{"app_key_file": s.AppKeyFile, "ca_file": s.CAFile} {
		if f.Value != "" && !filepath.IsAbs(f.Value) {
			problems.Add(f.Pos, "%s %.80q is not an absolute path; write it from /", key, f.Value)
		}
	}
	s.repositories(d, section, &problems)
	s.permissions(section, &problems)
	if d.MaxTTL > tokenLife {
		problems.Add(section.Pos, "GitHub's tokens live %s; shorten max_ttl to that or less", config.FormatDuration(tokenLife))
	}
	return s, problems.Err()
}

// repositories checks that there are some: a token that names none is good for
// all of the installation.
func (s *settings) repositories(d *credential.Definition, section config.Section, problems *config.Errors) {
	if n := len(s.Repositories); n == 0 {
		problems.Add(section.Pos, "repositories is missing, and a token for none would be good for all of the installation; list their names without the owner")
	} else if n > maxRepositories {
		problems.Add(section.Pos, "repositories has %d names and may have %d; remove some", n, maxRepositories)
	}
	values := make(map[string]string)
	for _, p := range d.Parameters {
		values[p.Name] = "x"
	}
	for _, r := range s.Repositories {
		if err := r.Value.Check(d, nil); err != nil {
			problems.Add(r.Pos, "repositories: %v", err)
			continue
		}
		if name, err := r.Value.Expand(values, quoteRepository); err != nil || !plainName(name) {
			problems.Add(r.Pos, "repositories: %.80q is not a repository's name; leave the owner out", r.Value.String())
		}
	}
}

// permissions checks that there are some: a token that names none has all of the
// installation's.
func (s *settings) permissions(section config.Section, problems *config.Errors) {
	if n := len(s.Permissions); n == 0 {
		problems.Add(section.Pos, "permissions is missing, and a token with none would have all of the installation's; list them, such as [contents:read]")
	} else if n > maxPermissions {
		problems.Add(section.Pos, "permissions has %d elements and may have %d; remove some", n, maxPermissions)
	}
	seen := make(map[string]bool)
	for _, p := range s.Permissions {
		if seen[p.Value.name] {
			problems.Add(p.Pos, "permission %s is given again; remove one", p.Value.name)
		}
		seen[p.Value.name] = true
	}
}

func plainName(s string) bool { return repositoryName.MatchString(s) && s != "." && s != ".." }

func quoteRepository(_, value string) (string, error) {
	if !plainName(value) {
		return "", errors.New("is not a repository's name")
	}
	return value, nil
}

// installation is where tokens come from.
func (s *settings) installation() string {
	return s.base() + "/app/installations/" + strconv.Itoa(s.InstallationID.Value)
}

func (s *settings) base() string { return strings.TrimSuffix(s.APIURL.Value, "/") }

// keyName is that of the app's key in the TPM. Definitions for one app share it.
func (s *settings) keyName() string {
	sum := sha256.Sum256([]byte(fmt.Sprintf("%s\n%s", s.base(), s.AppID.Value)))
	return "github-" + hex.EncodeToString(sum[:8])
}
