// The Mesos isolator: a thin face of the core behind dunnage_mesos.h. It turns what the agent says into JSON, and what the core answers
// into futures; everything else is the core's. Built against the headers of the agent's own Mesos: the versions must be equal.

#include <sched.h>

#include <memory>
#include <string>
#include <vector>

#include <mesos/mesos.hpp>
#include <mesos/module/isolator.hpp>
#include <mesos/slave/containerizer.hpp>
#include <mesos/slave/isolator.hpp>

#include <process/future.hpp>
#include <process/owned.hpp>

#include <stout/error.hpp>
#include <stout/hashset.hpp>
#include <stout/json.hpp>
#include <stout/nothing.hpp>
#include <stout/option.hpp>
#include <stout/strings.hpp>
#include <stout/try.hpp>

#include "dunnage_mesos.h"

using mesos::ContainerID;
using mesos::slave::ContainerConfig;
using mesos::slave::ContainerLaunchInfo;
using mesos::slave::ContainerLimitation;
using mesos::slave::ContainerState;

using process::Future;
using process::Promise;

namespace {

// As the agent writes nested containers: the outer one first.
std::string name(const ContainerID& id)
{
  return id.has_parent() ? name(id.parent()) + "." + id.value() : id.value();
}

// Of a task's environment the core reads what begins so. What is too long, or too much, is cut so that it still is, and is refused by the
// core with its name: an agent's thread copies no more of it.
const char PREFIX[] = "DVDI_VOLUME_";
const size_t TOO_LONG = 4096 + 1;
const size_t TOO_MANY = 512 + 1;

// A call that is under way; it goes when it was answered.
template <typename T>
struct Call
{
  Promise<T> promise;
  T (*answered)(const JSON::Value& answer);

  static void done(void* with, const char* error, const char* answer)
  {
    std::unique_ptr<Call> call(static_cast<Call*>(with));
    if (error != nullptr) {
      call->promise.fail(error);
      return;
    }
    Try<JSON::Value> value = JSON::parse(answer);
    if (value.isError()) {
      call->promise.fail("Dunnage's answer cannot be read: " + value.error());
      return;
    }
    call->promise.set(call->answered(value.get()));
  }
};

Option<ContainerLaunchInfo> launch(const JSON::Value& answer)
{
  Result<JSON::Array> commands = answer.as<JSON::Object>().at<JSON::Array>("commands");
  if (!commands.isSome() || commands->values.empty()) {
    return None();
  }
  ContainerLaunchInfo info;
  info.add_clone_namespaces(CLONE_NEWNS);
  for (const JSON::Value& line : commands->values) {
    mesos::CommandInfo* command = info.add_pre_exec_commands();
    command->set_shell(false);
    for (const JSON::Value& word : line.as<JSON::Array>().values) {
      command->add_arguments(word.as<JSON::String>().value);
    }
    command->set_value(command->arguments(0));
  }
  return info;
}

Nothing nothing(const JSON::Value&)
{
  return Nothing();
}

class Isolator : public mesos::slave::Isolator
{
public:
  explicit Isolator(dunnage_isolator* core) : core(core) {}

  ~Isolator() override { dunnage_isolator_free(core); }

  bool supportsNesting() override { return true; }
  bool supportsStandalone() override { return true; }

  Future<Nothing> recover(
      const std::vector<ContainerState>& states,
      const hashset<ContainerID>& orphans) override
  {
    JSON::Array known;
    for (const ContainerState& state : states) {
      known.values.push_back(name(state.container_id()));
    }
    // The agent cleans these up itself.
    for (const ContainerID& id : orphans) {
      known.values.push_back(name(id));
    }
    Call<Nothing>* call = new Call<Nothing>{{}, nothing};
    Future<Nothing> future = call->promise.future();
    dunnage_isolator_recover(core, stringify(known).c_str(), &Call<Nothing>::done, call);
    return future;
  }

  Future<Option<ContainerLaunchInfo>> prepare(
      const ContainerID& id,
      const ContainerConfig& config) override
  {
    // A session, or a check of a task's health, is in the namespace of mounts of the task, and finds what that has. It may come with the
    // task's environment, and asks for nothing by it.
    if (config.has_container_class() && config.container_class() == mesos::slave::ContainerClass::DEBUG) {
      return Option<ContainerLaunchInfo>(None());
    }
    // A task's own environment: of an executor, that of its command.
    const mesos::CommandInfo& command =
      config.has_executor_info() && !config.has_task_info() && !id.has_parent()
        ? config.executor_info().command() : config.command_info();
    JSON::Array variables;
    std::string secret;
    auto add = [&variables, &secret](const mesos::Environment& environment) {
      for (const mesos::Environment::Variable& variable : environment.variables()) {
        if (!strings::startsWith(variable.name(), PREFIX) || variables.values.size() == TOO_MANY) {
          continue;
        }
        // A secret is not for us to read.
        if (variable.type() != mesos::Environment::Variable::VALUE) {
          secret = variable.name().substr(0, 80);
          continue;
        }
        JSON::Array pair;
        pair.values.push_back(variable.name().substr(0, TOO_LONG));
        pair.values.push_back(variable.value().substr(0, TOO_LONG));
        variables.values.push_back(pair);
      }
    };
    add(command.environment());
    if (config.has_task_info() && config.task_info().has_command() && !id.has_parent()) {
      add(config.task_info().command().environment());
    }
    if (!secret.empty()) {
      return process::Failure("invalid_argument{" + secret + "}: it is a secret, which the module cannot read; give it as a value");
    }
    JSON::Object request;
    request.values["environment"] = variables;
    if (config.has_rootfs()) {
      request.values["image"] = config.rootfs();
    }
    typedef Option<ContainerLaunchInfo> Answer;
    Call<Answer>* call = new Call<Answer>{{}, launch};
    Future<Answer> future = call->promise.future();
    dunnage_isolator_prepare(core, name(id).c_str(), stringify(request).c_str(), &Call<Answer>::done, call);
    return future;
  }

  Future<Nothing> cleanup(const ContainerID& id) override
  {
    Call<Nothing>* call = new Call<Nothing>{{}, nothing};
    Future<Nothing> future = call->promise.future();
    dunnage_isolator_cleanup(core, name(id).c_str(), &Call<Nothing>::done, call);
    return future;
  }

private:
  dunnage_isolator* core;
};

mesos::slave::Isolator* create(const mesos::Parameters& parameters)
{
  JSON::Object given;
  for (const mesos::Parameter& parameter : parameters.parameter()) {
    given.values[parameter.key()] = parameter.value();
  }
  char* error = nullptr;
  dunnage_isolator* core = dunnage_isolator_new(stringify(given).c_str(), &error);
  if (core == nullptr) {
    LOG(ERROR) << "Dunnage's isolator cannot start: " << (error == nullptr ? "it does not say why" : error);
    dunnage_text_free(error);
    return nullptr;
  }
  return new Isolator(core);
}

bool compatible()
{
  return true;
}

} // namespace {

#define DUNNAGE_MODULE(NAME)                                                  \
  mesos::modules::Module<mesos::slave::Isolator> NAME(                        \
      MESOS_MODULE_API_VERSION,                                               \
      MESOS_VERSION,                                                          \
      "Dunnage",                                                              \
      "",                                                                     \
      "Persistent volumes by DVDI_VOLUME_* in a task's environment.",         \
      compatible,                                                             \
      create)

// Ours, and both of the names that operators' configurations have.
DUNNAGE_MODULE(org_dunnage_VolumeIsolator);
DUNNAGE_MODULE(com_emccode_mesos_DockerVolumeDriverIsolator);
DUNNAGE_MODULE(com_emc_mesos_DockerVolumeDriverIsolator);
