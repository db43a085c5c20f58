package config_test

import (
	"os"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/hallmark-ca/hallmark/cmd/internal/config"
	"github.com/hallmark-ca/hallmark/signing"
)

// TestShippedConfiguration loads the configuration of the manifests.
func TestShippedConfiguration(t *testing.T) {
	text, err := os.ReadFile("../../../deploy/manifests/configuration.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var object struct {
		Data map[string]string `json:"data"`
	}
	if err := yaml.Unmarshal(text, &object); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Parse([]byte(object.Data["hallmark.yaml"]))
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Images.Issuance != signing.Audit || cfg.State != config.DefaultState {
		t.Errorf("gate %s, state %s: the manifests begin with audit, and the commands of the documents with the default state", cfg.Images.Issuance, cfg.State)
	}
}
