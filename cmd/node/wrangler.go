package main

// wranglerKeys are the top-level keys of a wrangler configuration, which may share its
// file with a node's.
var wranglerKeys = set(
	"$schema", "account_id", "ai", "ai_search", "ai_search_namespaces", "alias", "analytics_engine_datasets", "assets",
	"base_dir", "browser", "build", "cloudchamber", "compatibility_date", "compatibility_flags", "compliance_region",
	"containers", "d1_databases", "data_blobs", "define", "dev", "dispatch_namespaces", "durable_objects", "env", "exports",
	"find_additional_modules", "first_party_worker", "hyperdrive", "images", "jsx_factory", "jsx_fragment",
	"keep_names", "keep_vars", "kv_namespaces", "legacy_env", "limits", "logfwdr", "logpush", "main", "media", "migrations",
	"minify", "mtls_certificates", "name", "no_bundle", "node_compat", "observability", "pages_build_output_dir",
	"pipelines", "placement", "preserve_file_names", "preview_urls", "previews", "python_modules", "queues", "r2_buckets",
	"ratelimits", "route", "routes", "rules", "secrets", "secrets_store_secrets", "send_email", "send_metrics", "services",
	"site", "streaming_tail_consumers", "tail_consumers", "text_blobs", "triggers", "tsconfig", "unsafe",
	"unsafe_hello_world", "upload_source_maps", "userdata", "vars", "vectorize", "version_metadata", "vpc_services",
	"wasm_modules", "worker_loaders", "workers_dev", "workflows", "zone_id",
)

func set(keys ...string) map[string]bool {
	s := make(map[string]bool, len(keys))
	for _, k := range keys {
		s[k] = true
	}
	return s
}
