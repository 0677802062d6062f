package inventory

import (
	"bytes"
	"regexp"
	"slices"
	"strings"

	"github.com/vouchd/vouchd/inventory/text"
)

// gcloudFinder reads what gcloud keeps, and keys of service accounts wherever they are.
var gcloudFinder = finder{
	kind: Gcloud,
	is: func(p place) bool {
		if p.name == "application_default_credentials.json" {
			return true
		}
		if !slices.Contains(p.all, "gcloud") {
			return false
		}
		return p.name == "credentials.db" || p.name == "access_tokens.db" ||
			slices.Contains(p.all, "legacy_credentials") && (p.name == "adc.json" || p.name == ".boto")
	},
	read: func(r *reader) error {
		switch {
		case bytes.HasPrefix(r.data, []byte("SQLite format 3")):
			r.gcloudDatabase()
			return nil
		case strings.HasSuffix(r.place.name, ".boto"):
			for _, e := range text.INI(r.data) {
				if e.Key == "gs_oauth2_refresh_token" || e.Key == "gs_secret_access_key" {
					r.whole(e.Key, "gcloud-credential", e.Value, e.Start, e.End)
				}
			}
			return nil
		}
		leaves, err := text.JSON(r.data)
		for _, l := range leaves {
			switch key := strings.Join(l.Path, "."); key {
			case "private_key":
				r.whole("private_key of "+textOf(leaves, "client_email"), "gcloud-service-account", l.Value, l.Start, l.End)
			case "refresh_token", "source_credentials.refresh_token":
				f := r.whole(key, "gcloud-user", l.Value, l.Start, l.End)
				f.Broad = "it may do whatever its user may, in every project"
			}
		}
		return err
	},
	replace: migrateFile,
	hint:    func(place) string { return "a broker needs no key: federation, in docs/brokers.md" },
}

// textOf returns the text at a path of a document.
func textOf(leaves []text.Leaf, path ...string) string {
	for _, l := range leaves {
		if slices.Equal(l.Path, path) {
			return string(l.Value)
		}
	}
	return ""
}

// storedToken is in the rows of gcloud's databases, whose texts SQLite keeps as they are.
var storedToken = regexp.MustCompile(`"(refresh_token|private_key)": ?"([^"]{16,1000})"`)

func (r *reader) gcloudDatabase() {
	for _, m := range storedToken.FindAllSubmatchIndex(r.data, maxFindings) {
		f := r.whole(string(r.data[m[2]:m[3]]), "gcloud-user", r.data[m[4]:m[5]], m[4], m[5])
		f.Start, f.End, f.Line = 0, 0, 0 // of a database, of which no part can be replaced
		f.Replace = "gcloud auth revoke"
	}
}

// isServiceAccount reports whether a file begins as the key of a service account.
func isServiceAccount(head []byte) bool {
	return bytes.Contains(head, []byte(`"service_account"`)) && bytes.Contains(head, []byte(`"private_key"`))
}
