package postgres

import (
	"slices"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/credential"
)

func parse(t testing.TB, text string) (parsed credential.Template) {
	t.Helper()
	if err := parsed.UnmarshalText([]byte(text)); err != nil {
		t.Fatal(err)
	}
	return parsed
}

func TestPlaceThatIsNoTokenOfItsOwnIsRefused(t *testing.T) {
	t.Parallel()
	for _, good := range []string{
		`GRANT SELECT ON sales.{{x}} TO {{role}}`,
		`GRANT SELECT ON {{x}}.{{y}} TO {{role}};`,
		`ALTER ROLE {{role}} SET search_path = {{literal x}}`,
		`ALTER ROLE {{role}} SET work_mem='64MB'`,
		`SELECT f({{literal x}},$$it's$$, 'it''s', E'\'', "a""b", $1, U&'\0061') -- done
`,
		"/* a /* nested */ comment */ GRANT readonly TO {{role}}",
		`SELECT {{literal x}}::text, a$b$c, {{x}}({{literal y}})`,
		`COMMENT ON ROLE {{role}} IS {{literal x}}`,
	} {
		if err := checkPlaces(parse(t, good)); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{
		`COMMENT ON ROLE {{role}} IS 'for {{x}}'`,
		`COMMENT ON ROLE {{role}} IS '{{literal x}}'`,
		`COMMENT ON ROLE {{role}} IS 'for {{literal x}}'`,
		`COMMENT ON ROLE {{role}} IS E{{literal x}}`,
		`COMMENT ON ROLE {{role}} IS e{{literal x}}`,
		`COMMENT ON ROLE {{role}} IS N{{literal x}}`,
		`SELECT B{{literal x}}`,
		`SELECT X{{literal x}}`,
		`SELECT U&{{literal x}}`,
		`GRANT SELECT ON U&{{x}} TO {{role}}`,
		`GRANT SELECT ON "{{x}}" TO {{role}}`,
		`GRANT SELECT ON "a{{x}}" TO {{role}}`,
		`GRANT SELECT ON "a"{{x}} TO {{role}}`,
		`GRANT SELECT ON {{x}}{{y}} TO {{role}}`,
		`GRANT SELECT ON {{x}}"b" TO {{role}}`,
		`DO $$ BEGIN EXECUTE {{literal x}}; END $$`,
		`DO $a$ {{x}} $a$`,
		`DO ${{x}}$ $`,
		"SELECT 1 -- {{x}}\n",
		"SELECT 1 /* {{x}} */",
		"SELECT 1 /* /* */ {{x}} */",
		"SELECT E'a'\n{{literal x}}",
		"SELECT E'a' -- b\n {{literal x}}",
		"SELECT {{literal x}}\n'b'",
		"SELECT {{literal x}}'b'",
		"SELECT 'b'{{literal x}}",
		`SELECT E'\' || {{literal x}} || '`,
		`SELECT E'\\\' {{literal x}}'`,
		"GRANT readonly TO {{role}} -- it would take the next statement with it",
		"SELECT 'open",
		`SELECT "open`,
		"SELECT /* open",
		"SELECT $a$ open",
		"SELECT 1$a${{literal x}}$a$",
	} {
		if err := checkPlaces(parse(t, bad)); err == nil {
			t.Errorf("%s is accepted", bad)
		}
	}
}

// FuzzNoValueChangesTheTokens checks that whatever a caller chooses is one token
// in whatever statement was accepted.
func FuzzNoValueChangesTheTokens(f *testing.F) {
	for _, s := range []string{
		`GRANT SELECT ON sales.{{x}} TO {{role}}`, `SELECT E{{literal x}}`, "SELECT 'a'\n{{literal x}}", `DO $a$ {{x}} $a$`,
		`SELECT U&"{{x}}", 'a''b', {{literal x}}`, "SELECT /* /* */ -- */ {{x}}\n", `SELECT $1,{{literal x}}-- $$` + "\n",
	} {
		f.Add(s, `'; DROP TABLE orders; --`)
		f.Add(s, `\'"$a$ */`)
	}
	f.Fuzz(func(t *testing.T, text, value string) {
		var statement credential.Template
		if statement.UnmarshalText([]byte(text)) != nil {
			return
		}
		if strings.ContainsRune(value, 0) || len(value) > maxIdentifier || value == "" || checkPlaces(statement) != nil {
			return
		}
		expand := func(value string) []string {
			values := map[string]string{"role": "vouch_role"}
			for _, name := range statement.Names() {
				values[name] = value
			}
			text, err := statement.Expand(values, quote)
			if err != nil {
				t.Fatal(err)
			}
			list, err := tokens(text)
			if err != nil {
				t.Fatalf("%q: %v", text, err)
			}
			for i, token := range list {
				if slices.Contains([]string{identifier(value), literal(value)}, token) {
					list[i] = "the value"
				}
			}
			return list
		}
		const plain = "kqzj"
		if strings.Contains(text, plain) || strings.Contains(text, value) {
			return
		}
		if a, b := expand(plain), expand(value); !slices.Equal(a, b) {
			t.Errorf("%q with %q is %q, and with a plain name %q", text, value, b, a)
		}
	})
}
