package main

import (
	"slices"
	"testing"
)

func TestLicencesAreToldByTheirWords(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, text string
		want       []string
	}{
		{"broken lines", "Permission is hereby\n granted, free of charge", []string{"MIT"}},
		{"three clauses, not two", "Redistribution and use in source and binary forms … Neither the name of", []string{"BSD-3-Clause"}},
		{"two clauses", "Redistribution and use in source and binary forms, with or without", []string{"BSD-2-Clause"}},
		{"of two kinds", "Apache License … Permission is hereby granted, free of charge", []string{"Apache-2.0", "MIT"}},
		{"Mozilla's", "Mozilla Public License", []string{"MPL-2.0"}},
		{"unknown", "All rights reserved.", nil},
		{"none", "", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := identify(tt.text); !slices.Equal(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
