"""The demo's drafts: folders of weights beside this file."""
