package cli

import (
	"strings"
	"testing"
)

func TestTextIsWrappedBetweenWordsAndIndented(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"":                          "",
		"one two three":             "one two\n  three",
		"one\ntwo three four":       "one\n  two three\n  four",
		"a-word-longer-than-a-line": "a-word-longer-than-a-line",
		"ö ä ü ß é è ñ":             "ö ä ü ß é è\n  ñ",
	} {
		if got := wrap(text, "  ", 11); got != want {
			t.Errorf("%q becomes %q, want %q", text, got, want)
		}
	}
	if got := Wrap(new(strings.Builder), strings.Repeat("word ", 40), "  "); strings.Contains(got, "\n") {
		t.Errorf("where no terminal is, it is %q", got)
	}
}
